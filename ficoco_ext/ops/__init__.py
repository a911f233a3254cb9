"""The operators: what each computes, its schema, and the call that runs the fastest kernel there is.

The operator ``x`` is ``_x.py``, from top to bottom: the specification in plain PyTorch, schema, fake kernel, the typed
call that is exported here. The underscore keeps the module ``ops._filter`` and the function ``ops.filter`` apart.
:mod:`ficoco_ext.ops.reference` has the specifications under the names of the operators.

Nothing here knows of stages, methods or models.
"""

from ._attention_stats import attention_stats
from ._bipartite_thin import bipartite_thin
from ._compress import compress
from ._correlate import correlate, correlate_key
from ._correlate_tokens import correlate_tokens
from ._cosines import cosines
from ._filter import filter
from ._greedy_cover import greedy_cover
from ._greedy_select import Picked, greedy_select
from ._match import Matched, match
from ._received_from import Received, received_from
from ._reduce import Reduced, reduce
from ._reduce_sequence import Shortened, reduce_sequence
from ._to_sequence import Placed, to_sequence
from ._token_attention import token_attention
from ._top_of_segments import top_of_segments
from ._window_similarity import window_similarity
from .attention import Attention, QueryKey
from .library import result_dtype

__all__ = [
    "Attention",
    "Matched",
    "Picked",
    "Placed",
    "QueryKey",
    "Received",
    "Reduced",
    "Shortened",
    "attention_stats",
    "bipartite_thin",
    "compress",
    "correlate",
    "correlate_key",
    "correlate_tokens",
    "cosines",
    "filter",
    "greedy_cover",
    "greedy_select",
    "match",
    "received_from",
    "reduce",
    "reduce_sequence",
    "result_dtype",
    "to_sequence",
    "token_attention",
    "top_of_segments",
    "window_similarity",
]
