"""One use of a model: a call, a generation, beams, or a decoding loop of one's own; and what was seen meanwhile."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from helpers.decoder import Seen, watch
from helpers.families import END, START, VIDEO
from helpers.models import IMAGE
from property.build import NotHereError
from property.cases import LLAVA, NEXT, Case
from torch import Tensor

BEAMS = 2
TURN = (21, 22, 23)  # the words of a second turn
NEVER = [IMAGE, VIDEO, START, END]  # ids that a model must not say: they would announce a picture that is not there


@dataclass
class Used:
    """What a use gave, and what reached the parts of the model in its prefill."""

    seen: Seen
    pictures: list[Tensor] = field(default_factory=list)  # that the tower got, call by call
    scores: Tensor | None = None  # of beams
    at: list[int] = field(default_factory=list)  # of which new token each of the logits is, 0: the first

    def tensors(self) -> list[Tensor]:
        """All that must be equal between two equal uses."""
        seen = self.seen
        return [t for t in (seen.embeds, *seen.logits, seen.sequences, self.scores) if t is not None]


def use(case: Case, model, inputs: dict) -> Used:
    """The case's use of ``model``."""
    pictures: list[Tensor] = []
    hook = None
    if case.family == LLAVA:
        tower = model.model.vision_tower
        keep = lambda module, args, options: pictures.append(args[0] if args else options["pixel_values"])  # noqa: E731
        hook = tower.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        chosen = {"forward": called, "generate": said, "beams": said, "steps": stepped, "turns": talked}[case.use]
        seen, scores, at = chosen(case, model, dict(inputs))
        return Used(seen, pictures, scores, at)
    finally:
        if hook is not None:
            hook.remove()


def new_cache(case: Case, model, length: int) -> Any:
    """An empty cache of the case's kind for a direct call; None: the model makes its own."""
    config = model.config.text_config
    if case.cache == "static":
        return transformers.StaticCache(config=config, max_cache_len=length + 2 * case.steps + len(TURN))
    if case.cache == "offloaded":
        raise NotHereError("an offloaded cache needs an accelerator")
    if case.cache == "quantized":
        return transformers.QuantizedCache(backend=quantization(), config=config)
    return None


def quantization() -> str:
    """How caches can be quantised here: by transformers itself since 5.24, or by a package."""
    if hasattr(transformers.cache_utils, "Fp8QuantizedLayer"):
        return "fp8"
    if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.quanto") is None:
        raise NotHereError("a quantised cache needs optimum-quanto, or a newer transformers")
    return "quanto"


def require_beams(case: Case, model) -> None:
    """Older releases of transformers deal pictures out to beams one by one, whatever row they belong to."""
    dealt = "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters
    several = any(sum(isinstance(one, tuple) for one in row) > 1 for row in case.rows)
    if case.family in (LLAVA, NEXT) and dealt and several:
        raise NotHereError("this release of transformers mixes up the pictures of beams")


def called(case: Case, model, inputs: dict) -> tuple[Seen, None, list[int]]:
    """One direct call."""
    inputs["past_key_values"] = new_cache(case, model, inputs["input_ids"].shape[1])
    seen, out = watch(model, lambda: model(**inputs, use_cache=case.cache != "none"))
    seen.logits, seen.cache = [out.logits], out.past_key_values
    return seen, None, []


def said(case: Case, model, inputs: dict) -> tuple[Seen, Tensor | None, list[int]]:
    """``generate``: greedy, or with beams that are all returned."""
    options: dict[str, Any] = {"max_new_tokens": case.steps, "do_sample": False, "suppress_tokens": NEVER}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    if case.use == "beams":
        require_beams(case, model)
        options |= {"num_beams": BEAMS, "num_return_sequences": BEAMS, "length_penalty": 0.0, "output_scores": True}
    if case.cache == "none":
        options["use_cache"] = False
    elif case.cache == "quantized":
        options |= {"cache_implementation": "quantized", "cache_config": {"backend": quantization()}}
    elif case.cache != "dynamic":
        options |= {"cache_implementation": case.cache, "disable_compile": True}
    if case.cache == "offloaded" and not torch.cuda.is_available():
        raise NotHereError("an offloaded cache needs an accelerator")
    seen, out = watch(model, lambda: model.generate(**inputs, **options))
    seen.logits, seen.sequences, seen.cache = list(out.logits), out.sequences, out.past_key_values
    return seen, getattr(out, "sequences_scores", None), list(range(case.steps))


def talked(case: Case, model, inputs: dict) -> tuple[Seen, None, list[int]]:
    """Two turns of ``generate``: the second goes on from the cache of the first, with more words."""
    options: dict[str, Any] = {"max_new_tokens": case.steps, "do_sample": False, "suppress_tokens": NEVER}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    length, mask = inputs["input_ids"].shape[1], inputs.pop("attention_mask", None)
    cache = new_cache(case, model, length)
    first = {} if mask is None else {"attention_mask": mask}
    seen, out = watch(model, lambda: model.generate(**inputs, past_key_values=cache, **first, **options))
    seen.logits, seen.cache = list(out.logits), out.past_key_values
    ids = torch.cat([out.sequences, torch.tensor([TURN] * len(out.sequences))], 1)
    whole = torch.ones_like(ids)
    if mask is not None:
        whole[:, :length] = mask
    out = model.generate(ids, attention_mask=whole, past_key_values=seen.cache, **options)
    seen.logits, seen.sequences = seen.logits + list(out.logits), out.sequences
    again = case.steps + len(TURN)
    return seen, None, [*range(case.steps), *range(again, again + case.steps)]


def stepped(case: Case, model, inputs: dict) -> tuple[Seen, None, list[int]]:
    """A greedy loop of direct calls that counts from the cache; with chunks, repeated tokens are read together."""
    seen, *_ = called(case, model, inputs)
    real = inputs.get("attention_mask")
    mask = real if seen.mask is None or not isinstance(seen.mask, Tensor) or seen.mask.dim() != 2 else seen.mask
    logits, tokens, at, read = [seen.logits[0][:, -1]], [], [0], 0
    while True:
        chosen = logits[-1].index_fill(1, torch.tensor(NEVER), float("-inf")).argmax(-1, keepdim=True)
        tokens.append(chosen.repeat(1, case.chunk))
        if len(tokens) == case.steps:
            break
        options = {}
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), case.chunk)], 1)
            options["attention_mask"] = mask
            if case.family not in (LLAVA, NEXT) and seen.positions is not None:  # it would number the whole mask
                options["position_ids"] = seen.positions[-3:, :, -1:] + read + torch.arange(1, case.chunk + 1)
        read += case.chunk
        at.append(read)
        logits.append(model(input_ids=tokens[-1], past_key_values=seen.cache, use_cache=True, **options).logits[:, -1])
    seen.logits, seen.sequences = logits, torch.cat([inputs["input_ids"], *tokens], 1)
    return seen, None, at
