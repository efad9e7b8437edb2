#!/usr/bin/env bash
# One GPU of a data centre (80 GB), under ten minutes: parity on CUDA, then the paper's run-time test
# in the shape of Llama-2-7B, strides sampled.
#
#   pip install -e '.[dev]' && scripts/gpu_benchmark.sh [FOLDER]
#
# Records, figures, logs and tables go to FOLDER (docs/results/gpu). Variables replace what is
# measured: PYTHON, DEVICE, SHAPE, LENGTHS, LONG_SHAPE, LONG_LENGTHS, BATCH, OPTIONS (further options
# of every measurement), TESTS (what pytest looks through) and LIMIT (seconds, all together).
set -u
cd "$(dirname "$0")/.."
OUT=${1:-docs/results/gpu}
LIMIT=${LIMIT:-600}
DEVICE=${DEVICE:-cuda}
SHAPE=${SHAPE:-llama-2-7b}
NAME=$(basename "$SHAPE")
LENGTHS=${LENGTHS:-512:4096}  # contexts from 512 to T - m = 3968
LONG_SHAPE=${LONG_SHAPE:-llama-2-7b-16k}
LONG_NAME=$(basename "$LONG_SHAPE")
LONG_LENGTHS=${LONG_LENGTHS:-512:16384}
BATCH=${BATCH:-16}
read -ra MORE <<<"${OPTIONS:-}"
mkdir -p "$OUT" || exit
. scripts/steps.sh

usual=(--device "$DEVICE" --sampled "${MORE[@]}")
step parity "$PYTHON" -m pytest -q -m gpu "${TESTS:-tests}"
runtime "$NAME-float32" --shape "$SHAPE" --lengths "$LENGTHS" --dtype float32 "${usual[@]}"
runtime "$NAME-bfloat16" --shape "$SHAPE" --lengths "$LENGTHS" --dtype bfloat16 "${usual[@]}"
runtime "$LONG_NAME-bfloat16" --shape "$LONG_SHAPE" --lengths "$LONG_LENGTHS" --dtype bfloat16 \
  "${usual[@]}"
runtime "$NAME-bfloat16-batch" --shape "$SHAPE" --lengths "$LENGTHS" --dtype bfloat16 \
  --batch-size "$BATCH" "${usual[@]}"
finish
