"""THE SPECIFICATION: every operator in plain PyTorch, by name; each is written at the head of the operator's file.

Kernels are only faster. A float64 input is computed and returned in float64, everything else in float32 (weights,
statistics) or the input's dtype (tokens). Arguments are those of the schemas, all by position. Equation numbers refer
to FiCoCo, arXiv 2411.17686. :func:`attention_map` is the oracle of what query and key stand for.
"""

from ._attention_stats import specification as attention_stats
from ._attention_stats import specification_map as attention_stats_map
from ._bipartite_thin import specification as bipartite_thin
from ._compress import backward as compress_backward
from ._compress import specification as compress
from ._correlate import specification as correlate
from ._correlate import specification_key as correlate_key
from ._correlate import specification_map as correlate_map
from ._correlate_tokens import specification as correlate_tokens
from ._cosines import specification as cosines
from ._filter import local_penalty
from ._filter import specification as filter
from ._greedy_cover import specification as greedy_cover
from ._greedy_select import specification as greedy_select
from ._match import specification as match
from ._received_from import specification as received_from
from ._to_sequence import specification as to_sequence
from ._token_attention import specification as token_attention
from ._top_of_segments import specification as top_of_segments
from ._window_similarity import specification as window_similarity
from .attention import attention_map, attention_rows

__all__ = [
    "attention_map",
    "attention_rows",
    "attention_stats",
    "attention_stats_map",
    "bipartite_thin",
    "compress",
    "compress_backward",
    "correlate",
    "correlate_key",
    "correlate_map",
    "correlate_tokens",
    "cosines",
    "filter",
    "greedy_cover",
    "greedy_select",
    "local_penalty",
    "match",
    "received_from",
    "to_sequence",
    "token_attention",
    "top_of_segments",
    "window_similarity",
]
