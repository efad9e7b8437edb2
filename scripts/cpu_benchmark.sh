#!/usr/bin/env bash
# The figures of docs/benchmarks.md: the paper's run-time test on an idle CPU, an hour or so.
#
#   make figures        or        scripts/cpu_benchmark.sh [FOLDER]
#
# Records, figures, logs and tables go to FOLDER (build/benchmarks). Variables replace what is measured:
# PYTHON, SHAPE, LENGTHS, REPEATS (of the whole sweeps), OPTIONS (further options of every
# measurement), STEPS (some of: whole sampled bfloat16 text), INDEX (for the real text; made of this
# Python's documentation if there is none) and LIMIT (seconds, all together).
set -u
cd "$(dirname "$0")/.."
OUT=${1:-build/benchmarks}
LIMIT=${LIMIT:-14400}
SHAPE=${SHAPE:-opt-125m}
NAME=$(basename "$SHAPE")
LENGTHS=${LENGTHS:-512:2048}
REPEATS=${REPEATS:-1}
STEPS=${STEPS:-whole sampled bfloat16 text}
read -ra MORE <<<"${OPTIONS:-}"
mkdir -p "$OUT" || exit
. scripts/steps.sh

usual=(--shape "$SHAPE" --lengths "$LENGTHS" --device cpu "${MORE[@]}")
MADE=$(mktemp -d)
trap 'rm -rf "$MADE"' EXIT
for wanted in $STEPS; do
  case $wanted in
    whole) runtime "$NAME" --repeats "$REPEATS" "${usual[@]}" ;;
    sampled) runtime "$NAME-sampled" --sampled --repeats 3 "${usual[@]}" ;;
    bfloat16) runtime "$NAME-bfloat16" --sampled --repeats 3 --dtype bfloat16 "${usual[@]}" ;;
    text)
      [ -n "${INDEX:-}" ] || step index "$PYTHON" -m flashback index python-docs:base --out "$MADE/IDX"
      runtime "$NAME-text" --index "${INDEX:-$MADE/IDX}" --repeats "$REPEATS" "${usual[@]}"
      ;;
    *)
      echo "STEPS: $wanted; expected some of: whole sampled bfloat16 text" >&2
      exit 2
      ;;
  esac
done
finish
