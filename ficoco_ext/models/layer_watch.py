"""Shows query and key of the language model's layers, with where the visual tokens are, while nothing is reduced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn

from ..ops import QueryKey
from ..stages import Layout
from . import attention_tap
from . import transformers_api as api
from .attach import resolve
from .generate_options import named
from .model_changes import ModelChanges
from .model_checks import family_of
from .prompt_reader import PromptReader
from .reduced_prefill import ReducedPrefill

See = Callable[[int, QueryKey, Layout], None]


@contextlib.contextmanager
def watching(model: Any, see: See) -> Iterator[range]:
    """Inside, each prefill with pictures shows the layers that could reduce; the range that is given is those layers.

    Args:
        model: one whose language model can be reduced, and is not.
        see: called with the layer, its post-rotary query and key, and the layout of the prompt, for all rows with
            equally many visual tokens at once. Rows without any are left out.

    Raises:
        NotImplementedError, ValueError: as :func:`ficoco_ext.attach`, for a model that it would refuse.
    """
    layers = getattr(model.model, family_of(model).language_model).layers
    last = len(layers) - 1
    plan = resolve(model, "fastv", layer=last + 1)  # any that reduces the last layer: its facts are asked for
    reader, changes = PromptReader(plan, api.cache_name(type(model).forward)), ModelChanges()
    now: list[ReducedPrefill | None] = [None]

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        options = named(type(module).forward, module, args, kwargs)
        now[0] = reader.read(module, options) if reader.has_visual_tokens(options) else None

    def listen(layer: int, attn: QueryKey) -> None:
        prefill = now[0]
        for group in () if prefill is None else prefill.groups:
            if not group.is_text:
                query = group.of(attn.query)
                own = QueryKey(query, group.of(attn.key)[:, :, : query.shape[2]], attn.scale)  # a cache is longer
                assert prefill is not None
                see(layer, own, prefill.layout(group, query.device))

    chosen = range(plan.facts.language_model.first, last + 1)
    try:
        changes.hook(model.model.register_forward_pre_hook(before, with_kwargs=True))
        for layer in chosen:
            attention_tap.install(layers[layer].self_attn, changes, partial(listen, layer))
        yield chosen
    finally:
        changes.undo()
