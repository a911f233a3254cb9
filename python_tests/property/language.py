"""The language model of a case against itself at full length: removed columns masked, merged ones replaced."""

from __future__ import annotations

import torch
from helpers.decoder import decoder_by_hand, row_positions
from property.build import is_aware
from property.cases import Case
from property.layout import Row, cached, widths
from property.tower import assert_close, specified
from property.using import BEAMS, Used
from torch import Tensor


class Spy:
    """A method that keeps what it was called with, and what it gave."""

    def __init__(self, method, calls: list, layer: int | None = None) -> None:
        self.method, self.calls, self.layer = method, calls, layer

    def __call__(self, *args, **options):
        result = self.method(*args, **options)
        self.calls.append((self, args, options, result))
        return result

    def __getattr__(self, name: str):
        return getattr(self.method, name)


def check_rows(rows: list[Row], told, beams: int) -> None:
    """Every row lost what its schedule says: visual columns alone, and all text is there."""
    assert len(told) in (0, len(rows) * beams)
    for number, steps in enumerate(told):
        row = rows[number // beams]
        assert len(steps) == len(row.steps), f"row {number}: {len(steps)} reductions, wanted {row.steps}"
        left = row.visual.clone()
        for (_, r), step in zip(row.steps, steps, strict=True):
            kept, sources = step.kept[0], step.sources[0]
            assert bool((kept.diff() > 0).all()) and len(sources) == r
            assert bool(left[sources].all()), f"row {number}: {sources[~left[sources]]} left and were not visual"
            left[sources] = False
            held = torch.zeros_like(left)
            held[kept] = True
            assert torch.equal(held & row.real, row.real & (left | ~row.visual)), f"row {number}: others left too"


def check_lengths(case: Case, n: int, rows: list[Row], plan, used: Used, static_counts) -> list[int]:
    """The caches hold what they must; returns how wide each stage is."""
    found = widths(n, rows, plan, static_counts=bool(static_counts))
    cache = used.seen.cache
    if cache is None or case.cache == "none":
        return found
    new = used.at[-1] if used.at else 0
    aware = is_aware(case) and case.cache not in ("static", "quantized")
    wanted = [length + new for length in cached(case.layers, found, plan, aware=aware)]
    got = [int(cache.get_seq_length(layer)) for layer in range(case.layers)]
    assert got == wanted, f"the cache holds {got} positions, wanted {wanted}"
    return found


def check_logits(case: Case, model, n: int, rows: list[Row], told, plan, calls, used: Used, length: int) -> None:
    """Every logit, and the query, key and tokens of every reduction, against the language model by hand.

    ``n``: columns of the prompt that the language model gets. ``length``: of the caller's.
    """
    seen, beams = used.seen, BEAMS if case.use == "beams" else 1
    assert seen.embeds.shape[:2] == (len(rows) * beams, n), f"{seen.embeds.shape} reached the language model, not {n}"
    before = plan is not None and plan.before_attention
    heard: list[list] = []
    for number in range(len(rows) * beams):
        row, steps = rows[number // beams], told[number] if told else ()
        new = () if seen.sequences is None else seen.sequences[number, length:][: used.at[-1]]
        embeds = seen.embeds[number : number + 1]
        if len(new):
            embeds = torch.cat([embeds, model.get_input_embeddings()(new)[None]], 1)
        there = torch.cat([row.real, torch.ones(len(new), dtype=torch.bool)])
        positions = row_positions(seen, number, embeds.shape[1])
        heard.append([])
        layers = [layer for layer, _ in row.steps]
        see = lambda *found, at=number: heard[at].append(found)  # noqa: E731
        options = {"before": before, "see": see}
        if plan is not None and is_aware(case):
            options["forget"] = plan.layers[0], n
        wanted = decoder_by_hand(model, embeds, positions, there, steps, layers, **options)
        compare(case, used, number, wanted, kept_columns(steps, n), row, n)
    check_calls(case, calls, heard, rows, told, n, beams)


def kept_columns(steps, n: int) -> Tensor:
    """The columns of a row that are left in the end."""
    return steps[-1].kept[0] if steps else torch.arange(n)


def compare(case: Case, used: Used, number: int, wanted: Tensor, columns: Tensor, row: Row, n: int) -> None:
    """Logits of one row against those by hand (N, V)."""
    seen = used.seen
    if case.use == "forward":
        got = seen.logits[0][number]
        width = min(len(columns), len(got))
        columns = columns[-width:]
        real = row.real[columns]
        assert int(real.sum()) == int(row.real.sum()) - sum(r for _, r in row.steps), "the logits miss real columns"
        assert_close(case, got[-width:][real], wanted[columns][real], f"logits of row {number}")
    elif case.use == "beams" and case.cache != "quantized":
        new = seen.sequences[number, -case.steps :]
        score = wanted[n - 1 :].float().log_softmax(-1).gather(1, new[:, None]).sum()
        assert_close(case, used.scores[number], score, f"score of beam {number}", scale=float(wanted.abs().max()))
    else:
        at = used.at[:1] if case.cache == "quantized" else used.at  # a quantised cache rounds what later tokens read
        got = torch.stack([one[number] for one in seen.logits[: len(at)]])
        wanted = wanted[n - 1 + torch.tensor(at)]
        assert_close(case, got, wanted, f"logits of new tokens of row {number}")


def check_calls(case: Case, calls, heard, rows: list[Row], told, n: int, beams: int) -> None:
    """What each reduction was given is what the layer has at full length, in the columns that it holds."""
    done = [0] * len(heard)
    for members, (_, (tokens, attn, *_), _, _) in calls:
        for at, number in enumerate(range(len(heard)) if members is None else members.tolist()):
            step, row = done[number], rows[number // beams]
            done[number] += 1
            columns = kept_columns(told[number][:step], n)
            width = min(len(columns), tokens.shape[1])
            columns = columns[-width:]
            columns, real = columns[row.real[columns]], row.real[columns]
            _, hidden, query, key = heard[number][step]
            what = f"of reduction {step} of row {number}"
            assert_close(case, tokens[at, -width:][real], hidden[columns], f"tokens {what}")
            assert_close(case, attn.query[at, :, -width:][:, real], query[:, columns], f"query {what}")
            assert_close(case, attn.key[at, :, -width:][:, real], key[:, columns], f"key {what}")
    assert not calls or done == [len(row.steps) for row in rows for _ in range(beams)]


def check_specified(case: Case, calls) -> tuple[int, int]:
    """Every reduction against the specification in float64; returns how many, and in how many scores tied."""
    ties = 0
    for _, (spy, args, options, (result, _)) in calls:
        exact, _ = specified(spy.method, args, options)
        ties += not same_choice(case, result, exact)
    return len(calls), ties


def same_choice(case: Case, result, exact) -> bool:
    """Whether the specification chose the same; if so its numbers must be the same, too."""
    alike = torch.equal(result.kept, exact.kept) and torch.equal(result.targets, exact.targets)
    if alike:
        assert torch.equal(result.source_map, exact.source_map)
        assert_close(case, result.tokens, exact.tokens, "tokens by the specification")
        assert_close(case, result.size, exact.size, "sizes by the specification")
        assert_close(case, result.weights, exact.weights, "weights by the specification")
    return alike
