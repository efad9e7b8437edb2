#!/usr/bin/env bash
# Trains the adapter that ships with flashback-mini and measures it on held-out documentation.
set -euo pipefail
cd "$(dirname "$0")/../.."
flashback=${BIN:-.venv/bin}/flashback
index=build/mini/index
adapter=src/flashback/readers/flashback-mini-adapter

"$flashback" index python-docs:train --out "$index" --overwrite
rm -rf "$adapter"
"$flashback" train python-docs:adapter --index "$index" --out "$adapter" --echo-tokens 16 \
    --learning-rate 3e-3 --steps 240 --windows-per-step 4 --checkpoint-steps 40 --seed 1
"$flashback" eval python-docs:evaluation --index "$index" --adapter "$adapter" --max-windows 60 \
    --json > recipes/mini/adapter-table.json
