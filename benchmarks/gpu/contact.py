"""First contact: every operator and method on the GPU, in every dtype, at small and full shapes, against float64.

    python benchmarks/gpu/contact.py --json gpu_results/results.json

Each group of calls has a process of its own; several run beside each other. A row says ``right``; ``near`` where some
images chose other tokens than float64 did, as rounding may; ``wrong``; or ``unstable`` where a second run gave other
bits. The second run writes into memory that the first one's results left full of NaN.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from contained import Program, Task, options
from measure import agreement, hardware, need_kernels
from probes import DTYPES, FULL, GROUPS, SMALL, Method, Results, probes
from rows import Recorder


def namespace(rehearse: bool) -> tuple[Any, str]:
    """The operators to call: in a rehearsal the emulated CUDA kernels, or those of the CPU without the emulation."""
    if not rehearse:
        return torch.ops.ficoco, "cuda"
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python_tests"))
    from helpers import emulated_kernels

    if emulated_kernels.missing():
        return torch.ops.ficoco, "cpu"
    emulated_kernels.load()
    return torch.ops.ficoco_emu, "emulated"


def judge(probe: Any, operators: Any) -> dict[str, Any]:
    """One row: the call twice, compared with float64 and with itself."""
    start = time.perf_counter()
    first = probe.run(operators)
    kept = tuple(result.clone() for result in first)
    for result in first:
        result.view(torch.uint8).fill_(255) if result.numel() else None
    del first
    again = probe.run(operators)
    stable = all(torch.equal(_bytes(one), _bytes(other)) for one, other in zip(kept, again, strict=True))
    found = agreement(kept, probe.wanted())
    row: dict[str, Any] = {"task": f"{probe.group}: {probe.key}", "op": probe.group, "stable": stable, **found}
    if found["images"] == 0:
        row["verdict"] = "wrong"
    elif not stable:
        row["verdict"] = "unstable"
    else:
        row["verdict"] = "right" if found["images"] == 1 else "near"
    row["relative_error"] = float(f"{found['relative_error']:.3g}")
    row["seconds"] = round(time.perf_counter() - start, 3)
    return row


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor


def planted_wrong(group: str, device: torch.device) -> Method:
    """A probe whose result is off by one, to see it reported."""
    probe = next(probes(SMALL[0], torch.float32, device, "filter"))

    def run(operators: Any) -> Results:
        return tuple(result + 1 for result in probe.run(operators))

    return Method(group, probe.case, probe.dtype, run, probe.wanted)


def tasks(args: argparse.Namespace, recorder: Recorder) -> Iterable[Task]:
    """One task for a probe; small shapes first."""
    torch.set_grad_enabled(False)
    need_kernels(args.rehearse)
    device = torch.device("cpu" if args.rehearse else "cuda")
    if args.rehearse:
        torch.set_num_threads(1)
    operators, backend = namespace(args.rehearse)
    groups = args.group.split(",")
    if GROUPS[0] in groups:
        recorder.facts(environment=hardware(), operators=backend)

    def check(probe: Any, name: str) -> None:
        row = judge(probe, operators)
        recorder.add("probes", {**row, "task": name})

    if args.rehearse and GROUPS[0] in groups:
        wrong = planted_wrong("planted", device)
        yield "planted wrong", lambda: check(wrong, "planted wrong")
    cases = SMALL[:2] if args.rehearse else (*SMALL, *FULL)
    for case in cases:
        for dtype in DTYPES:
            for group in groups:
                for probe in probes(case, dtype, device, group):
                    name = f"{probe.group}: {probe.key}"
                    yield name, lambda probe=probe, name=name: check(probe, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser, budget=60.0)
    parser.add_argument("--beside", type=int, default=6, help="processes at a time")
    parser.add_argument("--prepare", action="store_true", help="build what a rehearsal needs, and nothing else")
    args = parser.parse_args()
    if args.prepare:
        print(namespace(True)[1])
        return
    program = Program(
        "contact",
        tasks,
        patience=6.0 if args.rehearse else 25.0,
        groups=(",".join(GROUPS[:6]), ",".join(GROUPS[6:])) if args.rehearse else GROUPS,
        beside=args.beside,
        bad=lambda row: "failed" in row or row.get("verdict") in ("wrong", "unstable"),
        planted=("crash", "hang", "wrong"),
    )
    raise SystemExit(program.main(args))


if __name__ == "__main__":
    main()
