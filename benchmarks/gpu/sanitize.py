"""Every operator and method once, at small odd shapes: to be run under compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python benchmarks/gpu/sanitize.py

Without torch's cache every tensor is an allocation of its own, so that a step over its edge is seen. Inputs are made on
the CPU: on the device nothing runs but our kernels, copies and fills. bfloat16 comes first; after --budget seconds no
more calls are begun, and the last line says how many there were.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from probes import DTYPES, GROUPS, SMALL, probes

import ficoco_ext


class OnDevice:
    """The operators of ``torch.ops.ficoco``, with tensors moved to the GPU before each call."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __getattr__(self, packet: str) -> Any:
        return _Moved(getattr(torch.ops.ficoco, packet), self.device)


class _Moved:
    def __init__(self, packet: Any, device: str) -> None:
        self.packet, self.device = packet, device

    def __getattr__(self, overload: str) -> Any:
        run = getattr(self.packet, overload)
        return lambda *args: run(*(a.to(self.device) if isinstance(a, torch.Tensor) else a for a in args))


def calls(device: str) -> Iterator[tuple[Any, Any]]:
    """Probes and the namespace to run them in. Methods make their inputs where they run."""
    for dtype in DTYPES:
        for case in SMALL:
            for group in GROUPS:
                where = device if group == "methods" else "cpu"
                namespace = OnDevice(device)
                yield from ((probe, namespace) for probe in probes(case, dtype, torch.device(where), group))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=900.0, help="seconds after which no more calls are begun")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU: tests this program")
    args = parser.parse_args()
    if not args.rehearse and ficoco_ext.build_info()["cuda"] != "kernels":
        raise SystemExit("the CUDA kernels are not live, there is nothing to check")
    torch.set_grad_enabled(False)
    count, left, stop = 0, 0, time.monotonic() + args.budget
    for probe, namespace in calls("cpu" if args.rehearse else "cuda"):
        if time.monotonic() > stop:
            left += 1
            continue
        if count % 25 == 0:
            print(f"{count} calls, next {probe.group}: {probe.key}", flush=True)
        for result in probe.run(namespace):
            values = result.cpu()
            if values.is_floating_point() and values.float().isnan().any():
                raise SystemExit(f"{probe.group}: {probe.key}: a result is not a number")
        count += 1
    print(f"{count} calls, no result is NaN; {left} calls were not reached", flush=True)


if __name__ == "__main__":
    main()
