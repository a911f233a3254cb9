"""Reading a model's config.json, which may come from anywhere: what is absurd is refused by name, and no code runs.

Imports neither torch nor, until :func:`parse` is called, transformers.
"""

from __future__ import annotations

import codecs
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_BYTES = 2**24  # of a config.json; real ones have a few thousand
_LAYERS, _WIDTH, _HEADS, _SIDE = 1000, 2**20, 2**14, 2**16

# The most that a number may be, far above every model: a list or a loop built from it takes under a second.
_MOST: dict[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth"), _LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"), _LAYERS),
    **dict.fromkeys(("hidden_size", "intermediate_size", "ffn_dim", "embed_dim", "projection_dim", "head_dim"), _WIDTH),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads"), _HEADS),
    **dict.fromkeys(("image_size", "patch_size", "num_channels", "num_labels", "image_seq_length"), _SIDE),
    **dict.fromkeys(("spatial_merge_size", "temporal_patch_size", "mlp_ratio"), 1024),
    "vocab_size": 2**24,
}
_FRACTIONS = ("mlp_ratio",)
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
# All others are names of kernels that transformers would fetch.
_ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def read(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder, checked.

    Raises:
        FileNotFoundError: there is none. ValueError: it is no JSON object, begins with a byte order mark, which
            transformers does not read, or :func:`check` refuses it.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no config.json in {folder}")
    if path.stat().st_size > _BYTES:
        raise ValueError(f"{path} must have at most {_BYTES:,} bytes, got {path.stat().st_size:,}; is it a config?")
    content = path.read_bytes()
    if content.startswith(codecs.BOM_UTF8):
        raise ValueError(
            f"{path} must be JSON without a byte order mark, with which transformers does not read it; save it as "
            "UTF-8 without one"
        )
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, an integer without end, lists without end
        raise ValueError(f"{path} must be JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold one object, got {type(found).__name__}")
    check(found, str(path))
    return found


def check(config: Mapping[str, Any], where: str) -> None:
    """Refuse numbers that no model has, and what would run code: attention from a hub, and a part's own classes.

    An ``auto_map`` at the top asks transformers for code too, but there a caller can say no; of a part transformers
    asks on the terminal. An ``attribute_map`` gives entries other names, by which both would get past here.

    Args:
        config: as JSON has it, with the configs of its parts inside.
        where: what to call it in an error.

    Raises:
        ValueError: names the entry.

    Example:
        >>> from ficoco_ext.io.configs import check
        >>> check({"text_config": {"num_hidden_layers": 10**6}}, "config.json")
        Traceback (most recent call last):
        ...
        ValueError: config.json: text_config.num_hidden_layers must be an integer in 1 ... 1000, got 1000000
    """
    for path, name, value in _entries(config):
        if name in _ATTENTION:
            for one in value.values() if isinstance(value, Mapping) else (value,):
                if one is not None and not (isinstance(one, str) and one in _ATTENTIONS):
                    raise ValueError(
                        f"{where}: {path} must be attention that transformers has ({', '.join(_ATTENTIONS)}), got "
                        f"{reprlib.repr(one)}: code from a hub is never fetched"
                    )
        if (name == "auto_map" and path != name) or name == "attribute_map":
            raise ValueError(
                f"{where}: {path} must not be there, got {reprlib.repr(value)}: code that comes with a part of a model "
                "is never run; take the entry out if transformers has the part's model_type"
            )
        if name in _MOST:
            for one in value if isinstance(value, (list, tuple)) else (value,):
                if one is not None and not _fits(one, _MOST[name], name in _FRACTIONS):
                    kind = "a number above 0 and up to" if name in _FRACTIONS else "an integer in 1 ..."
                    raise ValueError(f"{where}: {path} must be {kind} {_MOST[name]}, got {reprlib.repr(one)}")


def _fits(value: Any, most: int, fraction: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float) if fraction else int):
        return False
    return math.isfinite(value) and 0 < value <= most if fraction else 1 <= value <= most


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every entry with its path, those of parts inside included; JSON's own depth is bounded by its parser."""
    pending: list[tuple[str | None, Any]] = [(None, config)]
    while pending:
        before, found = pending.pop()
        if not isinstance(found, Mapping):
            pending += ((f"{before}[{index}]", one) for index, one in enumerate(found) if _holds(one))
            continue
        for name, value in found.items():
            path = str(name) if before is None else f"{before}.{name}"
            yield path, name, value
            if _holds(value):
                pending.append((path, value))


def _holds(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple))


def written(source: str, *, local: bool) -> dict[str, Any]:
    """The config of a folder or of a hub name as written in its file, checked.

    Raises:
        ImportError: no transformers, for a hub name. OSError: not found. ValueError: as of :func:`read`.
    """
    if local:  # what is refused is refused at once: importing transformers takes seconds
        return read(Path(source))
    from transformers import PretrainedConfig

    found: dict[str, Any] = PretrainedConfig.get_config_dict(source)[0]
    check(found, f"config.json of {source}")
    return found


def parse(source: str, *, local: bool) -> tuple[Any, dict[str, Any]]:
    """The transformers config of a folder or of a hub name, and the file's own dictionary; its code never runs.

    Raises:
        ImportError: no transformers. OSError: not found. ValueError: not readable, absurd, or it asks to run code.
    """
    found = written(source, local=local)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False), found
    except OSError:
        raise
    except Exception as error:  # a file from an unknown source can make transformers raise any kind
        if "auto_map" in found:
            raise ValueError(
                f"config.json of {source} asks to run code of its own (auto_map), which is never done; model_type must "
                f"be one that transformers has, got {reprlib.repr(found.get('model_type'))}"
            ) from error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"config.json of {source} is none that transformers reads: {lines[0]}") from error
