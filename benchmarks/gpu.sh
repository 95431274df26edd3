#!/usr/bin/env bash
# What only a machine with a GPU can say: the gpu-marked tests, the rows of gpu_rows.py, as text and JSON, and on one
# set accuracy by labels beyond the paper and Tables 2-4 of the paper, both at the paper's size and epochs; then the
# ConvNeXt rows of these tables, with a teacher of one's own that learns the features of TEACHER from training images.
#
#   benchmarks/gpu.sh SELECTED DATA             SELECTED from `twinbud select`, DATA a folder of class folders
#   benchmarks/gpu.sh --dry-run SELECTED DATA   the same stages, tiny, on the CPU (also: DEVICE=cpu)
#
# The tables need TEACHER, as --teacher spells it; without a hub and wheels, vit_small_patch14_dinov2@FILE.safetensors.
# FRACTIONS (0.05,0.01,0.1) are done in their order, as far as the time reaches; a second call goes on.
# WORKERS runs of the tables are done at once (1); ONLY="method=dual,timm sampling=0" narrows them; STAGES names the
# stages to do (environment tests rows beyond tables teach convnext). Time rows on a quiet machine; tables can fill it.
# TEACH_EPOCHS (30) of the ConvNeXt-T teacher; after three, at 64 pixels, its students were no better than random ones.
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
    sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
SELECTED=$(realpath "$1")
DATA=$(realpath "$2")
TEACHER=${TEACHER:-}
case $TEACHER in
    local-dir:*) TEACHER=local-dir:$(realpath "${TEACHER#local-dir:}") ;;
    *@*) TEACHER=${TEACHER%%@*}@$(realpath "${TEACHER#*@}") ;;
esac
OUT=${OUT:-./gpu-results}
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
export TWINBUD_CACHE="${TWINBUD_CACHE:-$OUT/cache}"

FRACTIONS=${FRACTIONS:-0.05,0.01,0.1}
WORKERS=${WORKERS:-1}
ONLY=${ONLY:-}
STAGES=${STAGES:-environment tests rows beyond tables teach convnext}
TEACH_EPOCHS=${TEACH_EPOCHS:-30}
PAIR=dinov2
rows=(--device "$DEVICE" --results "$OUT")
if [ "$DEVICE" = cpu ]; then
    rows+=(--images 32 --test-images 24 --epochs 2 --image-size 56 --repeats 1)
fi

failures=0
stage() { # NAME SECONDS COMMAND...: its output to $OUT/NAME.txt, its status and seconds to $OUT/stages.txt
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    case " $STAGES " in *" $name "*) ;; *) return 0 ;; esac
    printf '== %s (at most %s s)\n' "$name" "$limit"
    timeout --kill-after=10 "$limit" "$@" >"$OUT/$name.txt" 2>&1
    status=$?
    # pytest ends with 5 where no test is marked gpu
    if [ "$name" = tests ] && [ "$status" -eq 5 ]; then status=0; fi
    if [ "$status" -ne 0 ]; then failures=$((failures + 1)); fi
    printf '%s: status %s, %s s\n' "$name" "$status" "$((SECONDS - start))" | tee -a "$OUT/stages.txt"
    tail -n 20 "$OUT/$name.txt"
}

tables() { # RECIPE METHODS: its runs, fraction by fraction; on a CPU those of METHODS alone, tiny
    local recipe fraction word status=0 only=()
    recipe=$OUT/$(basename "$1")
    sed -e "s#teacher: dinov2-small#teacher: $TEACHER#" \
        -e "s#teacher: convnext_tiny.fb_in22k#teacher: local-dir:$OUT/convnext#" "$1" >"$recipe"
    if [ "$DEVICE" = cpu ]; then
        sed -i 's#^settings: .*#settings: {image_size: 56, epochs: 1, min_steps: 0, tune_epochs: 1, tune_min_steps: 0, threads: 1, precision: bf16}#' "$recipe"
        only=(--only "method=$2" --only sampling=0)
    fi
    for word in $ONLY; do only+=(--only "$word"); done
    for fraction in ${FRACTIONS//,/ }; do
        "$PYTHON" -m twinbud study "$recipe" --data "brain-mri=$DATA" --runs "$OUT/runs" --only data=brain-mri \
            --only "pair=$PAIR" --only "fraction=$fraction" --workers "$WORKERS" "${only[@]}" || status=1
        "$PYTHON" -m twinbud tables "$recipe" --runs "$OUT/runs" --output "$OUT/tables" || status=1
    done
    return "$status"
}

teach() { # a ConvNeXt-T that no test image of the tables has been shown to: their split is that of a short run
    local run=$OUT/split size=224 epochs=$TEACH_EPOCHS
    if [ "$DEVICE" = cpu ]; then size=64 epochs=1; fi
    if [ ! -e "$run/split.csv" ]; then
        "$PYTHON" -m twinbud train --data "$DATA" --teacher "$TEACHER" --profile paper --method kaiming --epochs 1 \
            --fraction 0.01 --image-size 56 --near-duplicates ignore --device "$DEVICE" --force --output "$run" || return
    fi
    "$PYTHON" -m twinbud teach --architecture convnext_tiny --from "$TEACHER" --data "$DATA" --split "$run/split.csv" \
        --image-size "$size" --epochs "$epochs" --near-duplicates ignore --device "$DEVICE" --force \
        --output "$OUT/convnext"
}

environment() {
    date -u +%FT%TZ
    git rev-parse HEAD 2>/dev/null || echo "no git"
    nvidia-smi 2>/dev/null || echo "no nvidia-smi"
    "$PYTHON" -c 'import sys, timm, torch; print(sys.version); print("torch", torch.__version__, torch.version.cuda, "timm", timm.__version__); print(torch.cuda.get_device_properties(0) if torch.cuda.is_available() else "no CUDA device")'
}
export -f environment tables teach
export PYTHON OUT DATA DEVICE TEACHER FRACTIONS WORKERS ONLY PAIR TEACH_EPOCHS

stage environment 120 bash -c environment
# no:cacheprovider: the checkout may be read-only
stage tests 300 "$PYTHON" -m pytest -m gpu -p no:cacheprovider
stage rows 900 "$PYTHON" benchmarks/gpu_rows.py "$SELECTED" "$DATA" "${rows[@]}" ${REPEATS:+--repeats "$REPEATS"}
if [ -n "$TEACHER" ]; then
    stage beyond 900 bash -c 'tables recipes/beyond/full-size.yaml best,refitted'
    stage tables 900 bash -c 'tables recipes/paper/tables-2-4.yaml dual,selection'
    stage teach 900 bash -c teach
    stage convnext 900 env PAIR=convnext bash -c 'tables recipes/paper/tables-2-4.yaml dual,selection'
else
    echo "no TEACHER: the tables are left out"
fi

printf '\n%s stage(s) failed; everything is in %s\n' "$failures" "$OUT"
exit "$failures"
