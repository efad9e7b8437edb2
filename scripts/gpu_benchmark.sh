#!/usr/bin/env bash
# One GPU of a data centre (80 GB), under ten minutes: parity on CUDA, then the paper's run-time test
# in the shape of Llama-2-7B, strides sampled.
#
#   pip install -e '.[dev,test]' && scripts/gpu_benchmark.sh [FOLDER]
#
# Records, figures, logs and tables go to FOLDER (build/benchmarks/gpu). Variables replace what is
# measured: PYTHON, DEVICE, SHAPE, LENGTHS, LONG_SHAPE, LONG_LENGTHS, BATCH, OPTIONS (further options
# of every measurement), TESTS (what pytest looks through), WORKERS (processes that test), STEPS (some
# of: parity float32 bfloat16 long batch) and LIMIT (seconds, all together).
set -u
cd "$(dirname "$0")/.."
OUT=${1:-build/benchmarks/gpu}
LIMIT=${LIMIT:-600}
DEVICE=${DEVICE:-cuda}
SHAPE=${SHAPE:-llama-2-7b}
NAME=$(basename "$SHAPE")
LENGTHS=${LENGTHS:-512:4096}  # contexts from 512 to T - m = 3968
LONG_SHAPE=${LONG_SHAPE:-llama-2-7b-16k}
LONG_NAME=$(basename "$LONG_SHAPE")
LONG_LENGTHS=${LONG_LENGTHS:-512:16384}
BATCH=${BATCH:-16}
WORKERS=${WORKERS:-6}
STEPS=${STEPS:-parity float32 bfloat16 long batch}
read -ra MORE <<<"${OPTIONS:-}"
mkdir -p "$OUT" || exit
. scripts/steps.sh

usual=(--device "$DEVICE" --sampled "${MORE[@]}")
short=(--shape "$SHAPE" --lengths "$LENGTHS" "${usual[@]}")
long=(--shape "$LONG_SHAPE" --lengths "$LONG_LENGTHS" "${usual[@]}")
parallel=()
"$PYTHON" -c 'import xdist' 2>/dev/null && parallel=(-n "$WORKERS")
for wanted in $STEPS; do
  case $wanted in
    parity) step parity "$PYTHON" -m pytest -q -m gpu "${parallel[@]}" "${TESTS:-tests}" ;;
    float32 | bfloat16) runtime "$NAME-$wanted" --dtype "$wanted" "${short[@]}" ;;
    long) runtime "$LONG_NAME-bfloat16" --dtype bfloat16 "${long[@]}" ;;
    batch) runtime "$NAME-bfloat16-batch" --dtype bfloat16 --batch-size "$BATCH" "${short[@]}" ;;
    *)
      echo "STEPS: $wanted; expected some of: parity float32 bfloat16 long batch" >&2
      exit 2
      ;;
  esac
done
finish
