#!/usr/bin/env bash
# Forty made-up facts asked of the real readers: a table for each reader, form and k.
#
#   make readers        or        scripts/reader_answers.sh READERS FOLDER
#
# READERS holds what scripts/download_readers.py wrote. Every answer is kept in FOLDER, where an
# interrupted run goes on. FLASHBACK replaces the command.
set -euo pipefail
cd "$(dirname "$0")/.."
READERS=$1 OUT=$2
FLASHBACK=${FLASHBACK:-flashback}
FACTS=readers_tests/facts.jsonl
mkdir -p "$OUT"
[ -e "$OUT/index" ] || "$FLASHBACK" index "$FACTS" --out "$OUT/index"
ask() {
  local reader=$1 form=$2 k=$3
  printf '\n%s, %s, k = %s\n' "$reader" "$form" "$k"
  "$FLASHBACK" eval qa "$FACTS" --index "$OUT/index" --model "$READERS/$reader.gguf" \
    --dtype float32 --max-new-tokens 24 --form "$form" --passages "$k" \
    --out "$OUT/$reader-$form-$k.jsonl"
}
for k in 1 3; do
  for form in chat question completion; do
    ask smollm2-135m-instruct "$form" "$k"
  done
  for form in question completion; do # a base model: no chat
    ask gemma-3-270m "$form" "$k"
  done
done
