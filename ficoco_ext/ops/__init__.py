"""The operators: what each computes, its schema, and the call that runs the fastest kernel there is.

Nothing here knows of stages, methods or models.
"""

from .decoder import Placed, correlate_tokens, to_sequence, token_attention
from .fused import Reduced, reduce
from .library import (
    Attention,
    QueryKey,
    attention_stats,
    compress,
    correlate,
    correlate_key,
    filter,
    result_dtype,
)
from .matching import Matched, match

__all__ = [
    "Attention",
    "Matched",
    "Placed",
    "QueryKey",
    "Reduced",
    "attention_stats",
    "compress",
    "correlate",
    "correlate_key",
    "correlate_tokens",
    "filter",
    "match",
    "reduce",
    "result_dtype",
    "to_sequence",
    "token_attention",
]
