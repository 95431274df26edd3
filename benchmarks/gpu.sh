#!/usr/bin/env bash
# What only a machine with a GPU can say: the gpu-marked tests, then the rows of gpu_rows.py, as text and JSON.
#
#   benchmarks/gpu.sh SELECTED DATA             SELECTED from `twinbud select`, DATA a folder of class folders
#   benchmarks/gpu.sh --dry-run SELECTED DATA   the same stages, tiny, on the CPU (also: DEVICE=cpu)
#
# Runs from a checkout, without installation and without a network. Results go to $OUT (./gpu-results). Each stage has
# its own time limit, and a stage that fails or runs over does not stop the next; the exit status counts the failures.
set -uo pipefail

DEVICE=${DEVICE:-cuda}
if [ "${1:-}" = --dry-run ]; then
    DEVICE=cpu
    shift
fi
if [ $# -ne 2 ]; then
    sed -n 's/^# \{0,1\}//; 2,/^$/p' "$0" >&2
    exit 2
fi
SELECTED=$(realpath "$1")
DATA=$(realpath "$2")
OUT=${OUT:-./gpu-results}
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
export TWINBUD_CACHE="${TWINBUD_CACHE:-$OUT/cache}"

rows=(--device "$DEVICE" --results "$OUT")
if [ "$DEVICE" = cpu ]; then
    rows+=(--images 32 --test-images 24 --epochs 2 --image-size 56 --repeats 1)
fi

failures=0
stage() { # NAME SECONDS COMMAND...: its output to $OUT/NAME.txt, its status and seconds to $OUT/stages.txt
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    printf '== %s (at most %s s)\n' "$name" "$limit"
    timeout --kill-after=10 "$limit" "$@" >"$OUT/$name.txt" 2>&1
    status=$?
    # pytest ends with 5 where no test is marked gpu
    if [ "$name" = tests ] && [ "$status" -eq 5 ]; then status=0; fi
    if [ "$status" -ne 0 ]; then failures=$((failures + 1)); fi
    printf '%s: status %s, %s s\n' "$name" "$status" "$((SECONDS - start))" | tee -a "$OUT/stages.txt"
    tail -n 20 "$OUT/$name.txt"
}

environment() {
    date -u +%FT%TZ
    git rev-parse HEAD 2>/dev/null || echo "no git"
    nvidia-smi 2>/dev/null || echo "no nvidia-smi"
    "$PYTHON" -c 'import sys, timm, torch; print(sys.version); print("torch", torch.__version__, torch.version.cuda, "timm", timm.__version__); print(torch.cuda.get_device_properties(0) if torch.cuda.is_available() else "no CUDA device")'
}
export -f environment
export PYTHON

: >"$OUT/stages.txt"
stage environment 120 bash -c environment
# no:cacheprovider: the checkout may be read-only
stage tests 300 "$PYTHON" -m pytest -m gpu -p no:cacheprovider
stage rows 900 "$PYTHON" benchmarks/gpu_rows.py "$SELECTED" "$DATA" "${rows[@]}"

printf '\n%s stage(s) failed; everything is in %s\n' "$failures" "$OUT"
exit "$failures"
