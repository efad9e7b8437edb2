#!/usr/bin/env bash
# Trains the adapter that ships with flashback-mini and measures it on held-out documentation.
# Run it again after an interruption; what ships is replaced when all is done.
set -euo pipefail
cd "$(dirname "$0")/../.."
flashback=${BIN:-.venv/bin}/flashback
index=build/mini/index
adapter=build/mini/flashback-mini-adapter
shipped=src/flashback/readers/weights/flashback-mini-adapter

[ -d "$index" ] || "$flashback" index python-docs:train --out "$index"
[ -f "$adapter/flashback.json" ] || "$flashback" train python-docs:adapter --index "$index" \
    --out "$adapter" --echo-tokens 16 --learning-rate 3e-3 --steps 240 --windows-per-step 4 \
    --checkpoint-steps 40 --seed 1 \
    --held-out python-docs:evaluation --held-out-windows 60 --evaluation-steps 240
"$flashback" eval python-docs:evaluation --index "$index" --adapter "$adapter" --max-windows 60 \
    --json > build/mini/adapter-table.json
cp "$adapter"/* "$shipped"/
cp build/mini/adapter-table.json recipes/mini/
