"""Faults of bipartite_thin's CPU kernel."""

from __future__ import annotations

from mutations import Mutation

FILE = "csrc/cpu/bipartite_thin.cpp"
TESTS = "python_tests/ops/test_bipartite_thin.py"
COUNTS = f"{TESTS}::test_every_count"

MUTATIONS = [
    Mutation(
        FILE,
        "if (!p.mask || p.mask[p.order[i]])",
        "if (!p.mask || p.mask[i])",
        (f"{TESTS}::test_a_masked_token_is_not_there",),
        "The mask hides places of the list, not tokens.",
    ),
    Mutation(
        FILE,
        "for (; j < count; ++j) best[0] = std::max(best[0], row[others[j]]);",
        "",
        (COUNTS,),
        "The last tokens of a list are like nothing.",
    ),
    Mutation(
        FILE,
        "out[j] = row[from.rows[j]];",
        "out[j] = row[j];",
        (COUNTS,),
        "Once half of a list has left the rest is compared by cosines of others.",
    ),
    Mutation(
        FILE,
        "to.tokens[i] = from.tokens[from.rows[i]];",
        "to.tokens[i] = from.rows[i];",
        (COUNTS,),
        "Once half of a list has left it names positions instead of tokens.",
    ),
    Mutation(
        FILE,
        "for (int64_t i = leave; i < evens; ++i) next.push_back",
        "for (int64_t i = 0; i < evens - leave; ++i) next.push_back",
        (COUNTS,),
        "Those leave that are least like others.",
    ),
    Mutation(
        FILE,
        "std::min({p.step, list.length() - p.count, ceil_div(list.length(), 2)})",
        "std::min(p.step, ceil_div(list.length(), 2))",
        (COUNTS,),
        "The last round takes a whole step, and fewer tokens are left than asked for.",
    ),
    Mutation(
        FILE,
        "if (length < p.count) return Fault::kListTooShort;",
        "",
        (f"{TESTS}::test_values_are_checked_where_reading_is_free",),
        "Where the real tokens do not suffice the result holds what was in memory.",
    ),
    Mutation(
        FILE,
        "if (std::any_of(tokens.begin(), tokens.end(), bad)) return Fault::kThinnedNotFinite;",
        "",
        (f"{TESTS}::test_values_are_checked_where_reading_is_free",),
        "NaN decides silently who leaves.",
    ),
]
