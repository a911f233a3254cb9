"""What the compiler says of the kernels, held to a table: no spills, registers within a budget, and in the hot kernels
the instructions they are written for.

    python csrc/testing/tools/static_gates.py [--archs 80 90] [--json FILE]

Needs nvcc. The instructions are looked at if cuobjdump is there (CUDA toolkit, or the packages nvidia-cuda-cuobjdump
and nvidia-cuda-nvdisasm); with --require-sass its absence is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]

# Registers a thread may use. A block of 256 threads that is to have a second one beside it can have 128; the passes
# over memory want more blocks than that. A kernel that is not here fails.
BUDGET = {
    "add_chunks_kernel": 40,
    "attention_block_kernel": 128,
    "add_kernel": 40,
    "add_probabilities_kernel": 64,
    "add_way_kernel": 96,
    "choose_kernel": 40,
    "choose_visual_kernel": 128,
    "column_kernel": 128,
    "compress_kernel": 128,
    "cosine_kernel": 64,
    "cosines_kernel": 128,
    "cover_kernel": 80,
    "filter_kernel": 64,
    "finish_filter_kernel": 64,
    "finish_kernel": 112,
    "fold_rows_kernel": 64,
    "head_mean_kernel": 40,
    "key_sums_kernel": 64,
    "lists_kernel": 40,
    "map_kernel": 64,
    "metric_kernel": 80,
    "nearest_kernel": 128,
    "pass_kernel": 80,
    "pick_kernel": 80,
    "query_dots_kernel": 96,
    "received_kernel": 128,
    "row_kernel": 48,
    "row_softmax_kernel": 128,
    "score_kernel": 128,
    "segment_rank_kernel": 64,
    "select_kernel": 128,
    "sum_kernel": 40,
    "thin_kernel": 64,
    "to_sequence_kernel": 40,
    "token_dots_kernel": 112,
    "token_pairs_kernel": 128,
    "unite_kernel": 40,
    "visual_dots_kernel": 128,
    "weighted_sum_kernel": 112,
    "wide_block_kernel": 128,
    "wide_pairs_kernel": 128,
    "window_similarity_kernel": 128,
    "write_kept_kernel": 40,
}


class Wanted(NamedTuple):
    """Every compiled version of ``kernel`` whose mangled name holds ``version`` has ``instruction``."""

    kernel: str
    version: str
    instruction: str


# Mangled: f float, 6__half, 13__nv_bfloat16; Lb1E true (16-byte accesses).
TILED = ("score", "row_softmax", "column", "token_pairs", "attention_block", "cosines", "received")
SASS = [
    *(Wanted("pass_kernel", f"I{t}Lb1E", r"LDG\.E\.128") for t in ("f", "6__half", "13__nv_bfloat16")),
    *(
        Wanted(kernel, f"I{t}Lb1E", r"LDG\.E\.128")
        for kernel in ("key_sums_kernel", "visual_dots_kernel")
        for t in ("f", "6__half", "13__nv_bfloat16")
    ),
    *(Wanted("query_dots_kernel", f"I{t}Lb1E", r"LDG\.E\.128") for t in ("f", "6__half", "13__nv_bfloat16")),
    *(Wanted("compress_kernel", f"I{t}Lb1E", r"LDG\.E\.128") for t in ("f", "6__half", "13__nv_bfloat16")),
    *(Wanted("window_similarity_kernel", f"I{t}Lb1E", r"LDG\.E\.128") for t in ("f", "6__half", "13__nv_bfloat16")),
    *(Wanted("compress_kernel", f"I{t}Lb1E", r"STG\.E\.128") for t in ("f", "6__half", "13__nv_bfloat16")),
    *(
        Wanted(f"{k}_kernel", f"I{t}Lb1E", r"LDGSTS\.E\.BYPASS\.128")
        for k in TILED
        for t in ("f", "6__half", "13__nv_bfloat16")
    ),
    *(
        Wanted(f"{k}_kernel", f"I{t}Lb", instruction)
        for k in TILED
        for t in ("6__half", "13__nv_bfloat16")
        for instruction in (r"HMMA\.16816\.F32", r"LDSM\.16\.M88\.4")
    ),
    *(
        Wanted(kernel, f"I{t}L", instruction)
        for kernel in ("wide_block_kernel", "wide_pairs_kernel")
        for t in ("6__half", "13__nv_bfloat16")
        for instruction in (r"LDGSTS\.E\.BYPASS\.128", r"HMMA\.16816\.F32", r"LDSM\.16\.M88\.4")
    ),
    *(Wanted(f"{k}_kernel", version, r"LDS\.128") for k, version in (("score", "IfLb1E"), ("nearest", ""))),
]


class Kernel(NamedTuple):
    """What ptxas printed of one compiled version."""

    source: str
    arch: str
    mangled: str
    name: str
    registers: int
    spilled: int


# Bytes that a kernel may spill, by a part of its mangled name and architecture: where a block less on a multiprocessor
# would cost more. Heads of 128 channels, one set of weights, columns: 3 registers more than two blocks leave.
SPILLS = {("wide_pairs_kernel", "Li128ELi1ELb1E", arch): 12 for arch in ("80", "86", "89")}


def may_spill(kernel: Kernel) -> int:
    """Bytes."""
    fitting = (
        bytes_
        for (name, part, arch), bytes_ in SPILLS.items()
        if (name, arch) == (kernel.name, kernel.arch) and part in kernel.mangled
    )
    return max(fitting, default=0)


def compile_one(source: Path, arch: str, folder: Path) -> list[Kernel]:
    """Compiles to ``folder`` and reads what ptxas prints."""
    target = folder / f"{source.stem}.sm_{arch}.cubin"
    run = ["nvcc", "-cubin", f"-arch=sm_{arch}", "-O3", "-std=c++20", "-Xptxas", "-v", f"-I{ROOT}/csrc"]
    done = subprocess.run([*run, str(source), "-o", str(target)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{source.name} does not compile for sm_{arch}:\n{done.stderr}")
    found = []
    for part in done.stderr.split("Compiling entry function '")[1:]:
        mangled = part.split("'", 1)[0]
        name = re.search(r"\d([a-z_]+_kernel)", mangled)
        registers, spilled = re.search(r"Used (\d+) registers", part), re.search(r"(\d+) bytes spill stores", part)
        if not (name and registers and spilled):
            sys.exit(f"{source.name}: what ptxas printed was not understood:\n{part}")
        found.append(Kernel(source.name, arch, mangled, name[1], int(registers[1]), int(spilled[1])))
    return found


def cuobjdump() -> str | None:
    """The program, of the toolkit or of its package."""
    packages = [Path(sysconfig.get_path(kind)) / "nvidia" for kind in ("purelib", "platlib")]
    packaged = [path for folder in packages for path in folder.glob("cu*/bin/cuobjdump")]
    return shutil.which("cuobjdump") or (str(packaged[0]) if packaged else None)


def instructions(program: str, cubin: Path) -> dict[str, str]:
    """SASS by mangled name. nvdisasm is looked for beside cuobjdump."""
    environment = {**os.environ, "PATH": f"{Path(program).parent}{os.pathsep}{os.environ['PATH']}"}
    text = subprocess.run([program, "-sass", str(cubin)], capture_output=True, text=True, check=True, env=environment)
    parts = text.stdout.split("Function : ")[1:]
    return {part.split("\n", 1)[0].strip(): part for part in parts}


def judge(kernels: list[Kernel]) -> list[str]:
    """What is wrong with registers and spills."""
    wrong = []
    for k in kernels:
        name = f"{k.source} {k.name} sm_{k.arch} ({k.mangled})"
        if k.name not in BUDGET:
            wrong.append(f"{name}: not in the table of csrc/testing/tools/static_gates.py")
        elif k.registers > BUDGET[k.name]:
            wrong.append(f"{name}: {k.registers} registers, budget {BUDGET[k.name]}")
        if k.spilled > may_spill(k):
            wrong.append(f"{name}: spills {k.spilled} bytes")
    unused = set(BUDGET) - {k.name for k in kernels}
    return wrong + [f"{name}: in the table, but no such kernel" for name in sorted(unused)]


def judge_instructions(program: str, folder: Path) -> list[str]:
    """What the hot kernels lack."""
    wrong = []
    with ThreadPoolExecutor(2) as pool:
        cubins = sorted(folder.glob("*.cubin"))
        for arch in sorted({path.suffixes[-2] for path in cubins}):
            of_arch = [path for path in cubins if path.suffixes[-2] == arch]
            code: dict[str, str] = {}
            for part in pool.map(lambda path: instructions(program, path), of_arch):
                code |= part
            for wanted in SASS:
                name = f"{len(wanted.kernel)}{wanted.kernel}{wanted.version}"
                versions = [text for mangled, text in code.items() if name in mangled]
                if not versions:
                    wrong.append(f"{arch}: no version {name}")
                if not all(re.search(wanted.instruction, text) for text in versions):
                    wrong.append(f"{arch}: {name} without {wanted.instruction}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=["80", "90"])
    parser.add_argument("--require-sass", action="store_true", help="fail without cuobjdump")
    parser.add_argument("--json", type=Path, help="write every version's registers here")
    args = parser.parse_args()
    if shutil.which("nvcc") is None:
        sys.exit("nvcc was not found: these gates are what it says of the kernels")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = [(source, arch) for source in sorted(ROOT.glob("csrc/cuda/*.cu")) for arch in args.archs]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            kernels = [k for found in pool.map(lambda job: compile_one(*job, folder), jobs) for k in found]
        wrong, program = judge(kernels), cuobjdump()
        if program:
            wrong += judge_instructions(program, folder)
        elif args.require_sass:
            wrong.append("cuobjdump was not found")
    if args.json:
        args.json.write_text(json.dumps([k._asdict() for k in kernels], indent=1))
    print("\n".join(wrong), file=sys.stderr)
    most = {name: max((k.registers for k in kernels if k.name == name), default=0) for name in BUDGET}
    print(f"{len(kernels)} kernels; most registers: " + ", ".join(f"{k} {v}" for k, v in most.items()))
    print("instructions looked at" if program else "instructions not looked at: no cuobjdump")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
