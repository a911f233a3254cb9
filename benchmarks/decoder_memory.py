"""Memory that the decoder's operators take, beside the N x N attention map that they avoid.

    python benchmarks/decoder_memory.py --json benchmarks/results/decoder_memory_cpu.json

Each figure comes from a process of its own: how far the peak of its resident memory rises over one call, from where it
was just before, with inputs, libraries and threads there already (a tiny call has been made). Results are in it. The
largest of several processes is what is reported. A map of one head, made by torch, is measured in the same way to show
that the meter sees one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import extra_memory, require_kernels, save

from ficoco_ext import QueryKey, ops

METER = "torch one head's map"
FORMS = [
    " ".join(words)
    for words in product(("token_attention", "correlate_tokens"), ("logits", "probs"), ("row", "column"))
]
MEASURED = (
    "bytes by which VmHWM of a fresh process rises over one call above VmRSS before it, inputs resident, results "
    "included, after a tiny warm-up call, malloc_trim and a reset of the peak; the largest of `runs`"
)
CALLS = {
    "token_attention": "visual tokens against all tokens, two weighted sums: means over visual tokens and over text",
    "correlate_tokens": "sources against the other visual tokens, directly and by way of the text; 2 targets each",
}


class Prompt(NamedTuple):
    """Shape of a prompt: visual tokens, then text. ``sources`` of the visual ones are to leave."""

    visual: int
    text: int = 512
    heads: int = 32
    width: int = 128
    sources: int = 100

    @property
    def tokens(self) -> int:
        return self.visual + self.text


def call_of(form: str, prompt: Prompt) -> Callable[[], Any]:
    """One call of ``form`` on inputs that exist already."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, prompt.heads, prompt.tokens, prompt.width)
    attn = QueryKey(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
    if form == METER:
        return lambda: attn.query[:, 0] @ attn.key[:, 0].mT
    operator, attention, direction = form.split()
    how = {"probs": attention == "probs", "column": direction == "column", "causal": True}
    everyone = torch.arange(prompt.tokens)[None]
    visual, text = everyone.split([prompt.visual, prompt.text], dim=1)
    if operator == "token_attention":
        weights = torch.zeros(1, 2, prompt.tokens)
        weights[:, 0, : prompt.visual], weights[:, 1, prompt.visual :] = 1 / prompt.visual, 1 / prompt.text
        return lambda: ops.token_attention(attn, visual, everyone, weights, **how)
    leaves = torch.zeros(prompt.visual, dtype=torch.bool)
    leaves[torch.arange(prompt.sources) * prompt.visual // prompt.sources] = True
    sources, kept = visual[:, leaves], visual[:, ~leaves]
    weights = torch.full((1, prompt.text), 1 / prompt.text)
    return lambda: ops.correlate_tokens(attn, sources, kept, text, weights, 2, gamma=0.6, alpha="softmax", **how)


def measure_here(form: str, prompt: Prompt) -> int:
    """Extra bytes at the peak of one call, in this process."""
    call_of(form, prompt._replace(visual=40, text=24, sources=3))()
    return extra_memory(call_of(form, prompt))


def measure(form: str, prompt: Prompt) -> int:
    """The same in a fresh process."""
    sizes = [f"--{name}={value}" for name, value in prompt._asdict().items()]
    done = subprocess.run([sys.executable, __file__, "--here", form, *sizes], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{form} {prompt}: {done.stderr}")
    return int(done.stdout)


def row(form: str, prompt: Prompt, runs: int) -> dict[str, Any]:
    """One row of the table."""
    measured = [measure(form, prompt) for _ in range(runs)]
    one_head = 4 * prompt.tokens**2
    return {
        "form": form,
        **prompt._asdict(),
        "tokens": prompt.tokens,
        "dtype": "float32",
        "extra_bytes": max(measured),
        "runs": measured,
        "map_of_one_head_bytes": one_head,
        "map_of_all_heads_bytes": prompt.heads * one_head,
        "share_of_one_head": round(max(measured) / one_head, 4),
        "share_of_all_heads": round(max(measured) / one_head / prompt.heads, 6),
    }


def growth(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By what each form's memory grows where the visual tokens double, the text staying as it is."""
    found = {(result["form"], result["visual"]): result for result in results}
    return [
        {
            "form": form,
            "visual": [visual, 2 * visual],
            "extra": round(found[form, 2 * visual]["extra_bytes"] / max(result["extra_bytes"], 1), 2),
            "map": round((found[form, 2 * visual]["tokens"] / result["tokens"]) ** 2, 2),
        }
        for (form, visual), result in found.items()
        if (form, 2 * visual) in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write results here instead of to the terminal")
    parser.add_argument("--runs", type=int, default=3, help="fresh processes for each figure")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 2881], help="visual tokens")
    parser.add_argument("--here", choices=[*FORMS, METER], help="print the bytes of one form and --visual tokens")
    parser.add_argument("--visual", type=int, default=2881)
    for name, value in Prompt._field_defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    require_kernels()
    torch.set_grad_enabled(False)
    prompt = Prompt(*(getattr(args, name) for name in Prompt._fields))
    if args.here:
        print(measure_here(args.here, prompt))
        return
    results = []
    for form, visual in product([METER, *FORMS], args.sizes):
        result = row(form, prompt._replace(visual=visual), args.runs)
        results.append(result)
        print(
            f"{form:32} {visual:5} visual + {prompt.text} text: {result['extra_bytes'] / 2**20:8.2f} MiB, "
            f"{result['share_of_one_head']:7.2%} of one head's map, {result['share_of_all_heads']:8.4%} of all heads'",
            file=sys.stderr,
        )
    save(args.json, results, measured=MEASURED, calls=CALLS, growth=growth(results))


if __name__ == "__main__":
    main()
