"""What a checkpoint must hold before it is asked anything: files, weights and a processor that fit each other."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_FILES = {
    "tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model"),
    "picture processor": ("processor_config.json", "preprocessor_config.json"),
    "weights": ("*.safetensors", "pytorch_model*.bin"),
}


def require_files(directory: Path) -> None:
    """Raise unless a local checkpoint has its parts.

    Raises:
        FileNotFoundError: which part is missing, and the files one of which it would be.
    """
    missing = [
        f"no {part} (none of {', '.join(names)})"
        for part, names in _FILES.items()
        if not any(True for name in names for _ in directory.glob(name))
    ]
    if missing:
        raise FileNotFoundError(
            f"model directory {directory} has {' and '.join(missing)}; copy it from where the model is from"
        )


@contextlib.contextmanager
def reading(what: str, model: str) -> Iterator[None]:
    """Name the part of which an error is; the error is its cause, of any kind.

    Raises:
        FileNotFoundError, OSError, ImportError, MemoryError: those inside, by these kinds; ValueError: all others.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # libraries have kinds of their own for files that they cannot read
        kinds = (FileNotFoundError, OSError, ImportError)
        kind = next((one for one in kinds if isinstance(error, one)), ValueError)
        raise kind(f"cannot load the {what} of {model}: {error}") from error


def require_weights(report: Mapping[str, Any], model: str) -> None:
    """Raise unless every weight came from the checkpoint, and every one of its weights was taken.

    Args:
        report: the loading info of ``from_pretrained(..., output_loading_info=True)``.
        model: what messages call it.

    Raises:
        ValueError: names what is missing, unexpected and of another shape; numbers of layers are written as ``*``.
    """
    missing, unexpected = (_names(report.get(kind) or ()) for kind in ("missing_keys", "unexpected_keys"))
    shapes = [
        f"{key[0]} is {tuple(key[1])} and should be {tuple(key[2])}" if isinstance(key, (tuple, list)) else str(key)
        for key in report.get("mismatched_keys") or ()
    ]
    said = [
        text
        for text in (
            f"missing, so they would be drawn at random: {missing}" if missing else "",
            f"unexpected, so they would be left out: {unexpected}" if unexpected else "",
            f"of another shape: {'; '.join(sorted(shapes))}" if shapes else "",
            "; ".join(map(str, report.get("error_msgs") or ())),
        )
        if text
    ]
    if said:
        raise ValueError(
            f"the weights of {model} are not those of its config: {'. '.join(said)}. Take a checkpoint that was "
            "converted for transformers, or complete this one"
        )


def _names(keys: Iterable[str]) -> str:
    count = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", key) for key in sorted(keys))
    return ", ".join(f"{name} ({number} of them)" if number > 1 else name for name, number in count.items())


def require_processor(processor: Any, config: Any, model: str) -> None:
    """Raise unless a processor makes the prompts that the model of this config reads.

    Raises:
        ValueError: a part that is missing, or a number that differs; the message names it.
    """
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise ValueError(f"the processor of {model} has no {part}, got a {type(processor).__name__}")
    token = getattr(processor, "image_token", None)
    found = None if token is None else processor.tokenizer.convert_tokens_to_ids(token)
    if found != config.image_token_id:
        raise ValueError(
            f"the processor of {model} writes {token!r}, token {found}, for a picture, and its config reads token "
            f"{config.image_token_id} as one; tokenizer and config are of different models"
        )
    wanted = {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    for name, value in wanted.items():
        got = getattr(processor, name, None)
        if got != value:
            raise ValueError(
                f"the processor of {model} must have {name} {value!r} of the model's config, got {got!r}; set it in "
                "processor_config.json"
            )
    rows, largest = config.text_config.vocab_size, max(processor.tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(
            f"the tokenizer of {model} has tokens up to {largest}, and its config has a vocab_size of {rows}; they are "
            "of different models"
        )
