#!/usr/bin/env bash
# Build, test, check and time everything on the GPU of this machine, within ten minutes:
#
#     benchmarks/gpu/run.sh [OUTDIR]        default: $OUT if it is set, else ./gpu_results
#
# It uses the python on the PATH (or $PYTHON), whose torch must see a GPU, installs the extension beside it into a
# folder of its own, and changes nothing else. OUTDIR gets summary.json (what ran and what failed), results.json (the
# figures), junit.xml and logs, each as soon as it is there. Without its history, a copy of the tree is named by
# FICOCO_COMMIT. --smoke runs the programs on the CPU with tiny shapes and what is installed, to test them.
#
# Exit code: 0 everything is well, 1 something failed, 2 torch, a GPU or nvcc is missing and nothing was done.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
smoke=()
out=${OUT:-gpu_results}
for argument in "$@"; do
  case $argument in
    --smoke) smoke=(--smoke) ;;
    -*) echo "usage: $0 [--smoke] [OUTDIR]" >&2; exit 2 ;;
    *) out=$argument ;;
  esac
done

missing() {
  echo "$*" >&2
  exit 2
}

command -v "$python" >/dev/null || missing "$python was not found; set PYTHON to one with a CUDA build of torch"
"$python" -c 'import torch' 2>/dev/null ||
  missing "torch is missing in $(command -v "$python"): install a CUDA build of it first (pip install torch)"
if [ ${#smoke[@]} -eq 0 ]; then
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    missing "torch $("$python" -c 'import torch; print(torch.__version__)') sees no GPU: a CUDA build of torch, an" \
      "NVIDIA driver and a visible device are needed. Nothing was done. (--smoke tests the programs on the CPU.)"
  if ! command -v nvcc >/dev/null; then
    root=${CUDA_HOME:-${CUDA_PATH:-/usr/local/cuda}}
    [ -x "$root/bin/nvcc" ] ||
      missing "nvcc was not found on the PATH, in \$CUDA_HOME or in /usr/local/cuda. It comes with the CUDA toolkit of" \
        "torch's CUDA major version ($("$python" -c 'import torch; print(torch.version.cuda)')): install that from" \
        "https://developer.nvidia.com/cuda-downloads or with conda install -c nvidia cuda-nvcc, then set CUDA_HOME."
    export PATH="$root/bin:$PATH"
  fi
fi
exec "$python" "$here/steps.py" --out "$out" ${smoke[@]+"${smoke[@]}"}
