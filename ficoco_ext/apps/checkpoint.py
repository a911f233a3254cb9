"""A LLaVA with its processor: loading one, asking it, and the pictures it is asked about."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..io import config_facts, configs, images
from ..io.suggest import did_you_mean
from ..models.facts import crop_facts
from ..models.families import FAMILIES
from ..stages import Crops
from ..viz import Sheet
from . import loading

EMBEDDED = Path(__file__).parents[1] / "data" / "tiny_llava"
SCENES = EMBEDDED / "samples"
_READ = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")  # of a checkpoint
_QUESTION = "\u241f"  # the symbol for a separator, which no template writes
DTYPES = ("float32", "float16", "bfloat16")
LLAVA, NEXT = "llava", "llava_next"  # types of models that can be asked
_SERVED = {kind: next(one for one in FAMILIES if one.module.startswith(f"{kind}.")) for kind in (LLAVA, NEXT)}


@dataclass(frozen=True)
class Checkpoint:
    """A LLaVA with its processor, and how it wants to be asked."""

    model: Any
    processor: Any
    name: str
    embedded: bool

    def crops_of(self, image: Any) -> Crops | None:
        """How the model cuts ``image`` into crops; None for a LLaVA-1.5, for which a picture is one."""
        if self.model.config.model_type != NEXT:
            return None
        width, height = images.rgb(image).size
        return crop_facts(self.model).of(height, width)

    @property
    def remarks(self) -> list[str]:
        """Remarks that belong beside the answers, one sentence each."""
        if self.embedded and self.model.config.model_type == NEXT:
            return [
                "the embedded model was trained on pictures of one crop, without line ends: what it says here of where "
                "things are means nothing, most of its other answers are right (see docs/accuracy.md)"
            ]
        if self.processor.chat_template:
            return []
        return [
            f"{self.name} has no chat template (chat_template.jinja): questions are asked in the words of LLaVA-1.5, "
            f"{self.prompt('QUESTION')!r}; if it was trained with others, its answers suffer"
        ]

    @cached_property
    def template_ids(self) -> tuple[int, ...]:
        """The ids of what :meth:`prompt` writes around a question, which are none of its words."""
        parts = self.prompt(_QUESTION).split(_QUESTION)
        return tuple(sorted({one for part in parts for one in self.processor.tokenizer(part).input_ids}))

    def prompt(self, question: str) -> str:
        """The prompt for one picture and ``question``; the picture stands where the prompt has it, not in the question.

        Raises:
            ValueError: a chat template that fails, or that does not show the one picture.
        """
        question = question.replace(self.processor.image_token, "").strip()
        if not self.processor.chat_template:
            return f"USER: {self.processor.image_token}\n{question} ASSISTANT:"
        content = [{"type": "image"}, {"type": "text", "text": question}]
        turns = [{"role": "user", "content": content}]
        with loading.reading("chat template", self.name):
            prompt: str = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        pictures = prompt.count(self.processor.image_token)
        if pictures != 1:
            raise ValueError(
                f"the chat template of {self.name} must write {self.processor.image_token!r} once for one picture, got "
                f"{pictures} of them in {prompt!r}"
            )
        return prompt

    def spelled(self, question: str) -> str:
        """``question`` as the tokenizer reads it: the embedded one has lower-case words separated by blanks."""
        if not self.embedded:
            return question
        vocabulary = self.processor.tokenizer.get_vocab()
        words = re.sub(r"([?.,!:;])", r" \1 ", question).split()
        return " ".join(word if word in vocabulary else word.lower() for word in words)

    def unknown(self, question: str) -> list[str]:
        """Words of ``question`` that the tokenizer has no token for."""
        tokenizer = self.processor.tokenizer
        if tokenizer.unk_token_id is None:
            return []
        ids = {word: tokenizer(word, add_special_tokens=False).input_ids for word in question.split()}
        return [word for word, tokens in ids.items() if tokenizer.unk_token_id in tokens]

    def inputs(self, image: Any, question: str) -> dict[str, Any]:
        """Keyword arguments for ``generate``; ``image``: anything that :func:`ficoco_ext.io.images.rgb` reads."""
        prompt = self.prompt(question)
        special = not prompt.startswith(self.processor.tokenizer.bos_token or "\0")  # a template may have written it
        batch = self.processor(images=images.rgb(image), text=prompt, return_tensors="pt", add_special_tokens=special)
        return dict(batch.to(self.model.device, self.model.dtype))

    def answer(self, image: Any, question: str, max_new_tokens: int) -> str:
        """Greedy decoding."""
        inputs = self.inputs(image, question)
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.tokenizer.decode(new, skip_special_tokens=True)).strip()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and advice from transformers while we load; restored afterwards."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load(model: str | None, dtype: torch.dtype, device: torch.device, kinds: Sequence[str] = (LLAVA,)) -> Checkpoint:
    """A checkpoint and its processor, which runs on Pillow, so torchvision is not needed.

    Args:
        model: directory, hub name, or None for the embedded one. Only a hub name may reach for the network.
        dtype, device: of the model.
        kinds: the types of models that are wanted, of LLaVA-1.5 and LLaVA-NeXT.

    Raises:
        ImportError: transformers or Pillow is missing. FileNotFoundError: no such directory, or one without tokenizer,
            picture processor or weights. ValueError: a checkpoint of another model, weights that are missing, left over
            or of another shape, or a processor of another model. Nothing is guessed.
    """
    try:
        from transformers import AutoProcessor
    except ImportError as error:
        raise ImportError(f'the demo needs transformers and Pillow ({error}); pip install "ficoco_ext[hf]"') from error
    path = EMBEDDED if model is None else Path(model)
    local = path.is_dir()
    if not local and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise FileNotFoundError(f"model directory not found: {model}")
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(path if local else model),
        "local_files_only": local,
        "trust_remote_code": False,  # left out, it would ask on the terminal
    }
    embedded = local and path.resolve() == EMBEDDED.resolve()
    name = "embedded tiny LLaVA" if embedded else str(model)
    with _quiet():
        where = source["pretrained_model_name_or_path"]
        with contextlib.nullcontext() if local else loading.reading("config", name):  # of a folder it names itself
            config, written = configs.parse(where, local=local)
        kind = config.model_type
        if kind not in kinds:
            wanted, types = (" or ".join(given) for given in ([_SERVED[one].name for one in kinds], map(repr, kinds)))
            raise ValueError(f"model must be a {wanted} checkpoint (model_type {types}), got {kind!r} in {model}")
        config_facts.defaulted(written, f"config.json of {name}")
        _require_served(config, name)
        if local:
            loading.require_files(path)
        with loading.reading("processor", name):
            processor = AutoProcessor.from_pretrained(**source, backend="pil")
        loading.require_processor(processor, config, name)
        with loading.reading("weights", name):
            loaded: Any = (
                _SERVED[kind]
                .model_class()
                .from_pretrained(
                    **source, **_attention(config), dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
                )
            )
        llava, report = loaded
        loading.require_weights(report, name)
    return Checkpoint(llava.to(device).eval(), processor, name, embedded)


def _require_served(config: Any, model: str) -> None:
    """Raise unless both parts are of types that are served: of others transformers may ask for code to run."""
    family = _SERVED[config.model_type]
    served = {"text": family.language_models, "vision": family.towers}
    for part, kinds in served.items():
        kind = getattr(getattr(config, f"{part}_config", None), "model_type", None)
        if kind not in kinds:
            raise ValueError(
                f"config.json of {model}: {part}_config.model_type must be one of {', '.join(kinds)}, got {kind!r}; no "
                "other one is served"
            )


def _attention(config: Any) -> dict[str, Any]:
    """SDPA, which transformers takes by itself, unless a config that was checked names its own."""
    parts = (config, config.text_config, config.vision_config)
    named = any(getattr(part, "_attn_implementation", None) is not None for part in parts)
    return {} if named else {"attn_implementation": "sdpa"}


def files_of(model: str | None) -> list[Path]:
    """The files that :func:`load` may read for ``model``: of a folder those of a checkpoint, of a hub's name none."""
    path = EMBEDDED if model is None else Path(model)
    return [one for one in path.iterdir() if one.suffix in _READ] if path.is_dir() else []


def parse_device(name: str) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:1``; ValueError for one that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be one of torch's, as cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no CUDA device; pass --device cpu")
    return device


def parse_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """By name; None is float32 on the CPU, where half precision is slow, and bfloat16 elsewhere."""
    chosen = ("float32" if device.type == "cpu" else "bfloat16") if name is None else name
    if chosen not in DTYPES:
        near = did_you_mean(name, DTYPES)
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}{near}")
    return getattr(torch, chosen)


def find_image(image: str) -> Path:
    """The path of a picture: a file, or the name of an embedded scene.

    Raises:
        FileNotFoundError: neither.
    """
    path = Path(image)
    if path.exists():
        return path
    scene = SCENES / path.with_suffix(".png").name
    if path.name == str(path) and scene.is_file():
        return scene
    near = did_you_mean(image, (one.stem for one in sorted(SCENES.glob("*.png"))))
    raise FileNotFoundError(f"image not found: {image}{near}")


def open_image(path: Path, say: images.Say = lambda text: None) -> Any:
    """The RGB picture in a file, as :func:`ficoco_ext.io.images.rgb` reads it.

    Raises:
        ValueError: not a picture that can be read.
    """
    return images.rgb(path, say=say)


def seen_by_model(checkpoint: Checkpoint, image: Any) -> Any:
    """The picture after the processor's resizing and cropping, as a PIL image; one of several crops as a sheet."""
    from PIL import Image

    options = checkpoint.processor.image_processor
    pixels = options(images=images.rgb(image), return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (options.image_mean, options.image_std))
    bytes_ = ((pixels * std + mean).clamp(0, 1) * 255).round().byte()
    sheet = sheet_of(checkpoint.crops_of(image))
    if sheet is None:
        return Image.fromarray(bytes_.permute(1, 2, 0).numpy())
    return sheet.picture([Image.fromarray(one.permute(1, 2, 0).numpy()) for one in bytes_])


def sheet_of(crops: Crops | None) -> Sheet | None:
    """Where the patches of a picture of several crops are drawn; None for a picture that is one."""
    return None if crops is None else Sheet(crops.side, crops.grid, crops.rectangle)
