#!/usr/bin/env bash
# Build, check and time everything on the GPU of this machine:
#
#     benchmarks/gpu/run.sh [--part first|rest|all] [--only STEP,STEP] [--wheel FILE] [OUTDIR]
#
# The default is all, into $OUT or ./gpu_results.
#
# first: within 4 minutes, build, every operator once against float64, times of whole reductions, of each kernel, tests
# that need a GPU beside compute-sanitizer. rest: within 8 minutes, single operators, models, torch.compile. all: both,
# within 10. --only: of the part's steps these alone. --wheel installs a wheel of this project instead of compiling it.
#
# It uses the python on the PATH (or $PYTHON), whose torch must see a GPU, installs the extension into a folder of its
# own, and changes nothing else. OUTDIR gets summary.json (what ran and what failed), results.json (the figures) and
# logs, each as soon as it is there; a run that is killed leaves what it had. FICOCO_COMMIT names the commit of a copy
# without history. --rehearse runs all of it on the CPU with tiny shapes and planted faults, to test it.
#
# Exit code: 0 everything is well, 1 something failed, 2 something is missing and nothing was done.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
options=()
rehearse=
out=${OUT:-gpu_results}
usage() {
  echo "usage: $0 [--part first|rest|all] [--only STEP,STEP] [--wheel FILE] [--rehearse] [OUTDIR]" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
    --rehearse) rehearse=1 options+=(--rehearse) ;;
    --part)
      case ${2:-} in first | rest | all) options+=(--part "$2") ;; *) usage ;; esac
      shift
      ;;
    --only)
      [ -n "${2:-}" ] || usage
      options+=(--only "$2")
      shift
      ;;
    --wheel)
      [ -f "${2:-}" ] || { echo "--wheel: there is no file '${2:-}'. Nothing was done." >&2; exit 2; }
      options+=(--wheel "$2") wheel=1
      shift
      ;;
    -*) usage ;;
    *) out=$1 ;;
  esac
  shift
done

missing() {
  echo "$*" >&2
  exit 2
}

command -v "$python" >/dev/null || missing "$python was not found; set PYTHON to one with a CUDA build of torch"
"$python" -c 'import torch' 2>/dev/null ||
  missing "torch is missing in $(command -v "$python"): install a CUDA build of it first (pip install torch)"
if [ -z "$rehearse" ]; then
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    missing "torch $("$python" -c 'import torch; print(torch.__version__)') sees no GPU: a CUDA build of torch, an" \
      "NVIDIA driver and a visible device are needed. Nothing was done. (--rehearse tests the programs on the CPU.)"
  if [ -z "${wheel:-}" ] && ! command -v nvcc >/dev/null; then
    root=${CUDA_HOME:-${CUDA_PATH:-/usr/local/cuda}}
    [ -x "$root/bin/nvcc" ] ||
      missing "nvcc was not found on the PATH, in \$CUDA_HOME or in /usr/local/cuda. It comes with the CUDA toolkit of" \
        "torch's CUDA major version ($("$python" -c 'import torch; print(torch.version.cuda)')): install that from" \
        "https://developer.nvidia.com/cuda-downloads or with conda install -c nvidia cuda-nvcc, then set CUDA_HOME."
    export PATH="$root/bin:$PATH"
  fi
fi
exec "$python" "$here/steps.py" --out "$out" ${options[@]+"${options[@]}"}
