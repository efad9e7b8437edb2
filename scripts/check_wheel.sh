#!/usr/bin/env bash
# The wheel and the sdist as their users get them: built, installed into empty environments, run.
#
#   scripts/check_wheel.sh        or, with another Python that has build and hatchling, PYTHON=... scripts/check_wheel.sh
#
# Versions are those of constraints.txt. What pip has cached, or finds on disk, is not downloaded again.
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=$PWD
PYTHON=$(command -v "${PYTHON:-.venv/bin/python}")
MADE=$(mktemp -d)
trap 'rm -rf "$MADE"' EXIT
unset PYTHONPATH

# A wheel is built from the sdist, so what the sdist lacks, the wheel lacks.
"$PYTHON" -m build --no-isolation --outdir "$MADE" . >"$MADE/build.log" 2>&1 || {
  cat "$MADE/build.log" >&2
  exit 1
}
WHEEL=$(echo "$MADE"/*.whl) SDIST=$(echo "$MADE"/*.tar.gz)

"$PYTHON" - "$WHEEL" <<'EOF'
import sys
from zipfile import ZipFile

names = ZipFile(sys.argv[1]).namelist()
weights = "flashback/readers/weights/"
wanted = [weights + f"{name}/" for name in ("flashback-mini", "flashback-mini-adapter", "smollm2-adapter")]
for folder in wanted:
    if not any(name.startswith(folder) and name.endswith(".safetensors") for name in names):
        sys.exit(f"the wheel lacks the weights of {folder}")
texts = [f"flashback/cli/demo_texts/{name}" for name in ("tolmere.jsonl", "diary.txt", "questions.jsonl")]
for file in ("flashback/py.typed", weights + "flashback-mini/NOTICE", *texts):
    if file not in names:
        sys.exit(f"the wheel lacks {file}")
strange = [n for n in names if not n.startswith(("flashback/", "flashback_ralm-")) or "/test" in n]
if strange:
    sys.exit(f"the wheel has what does not belong there: {strange}")
EOF

"$PYTHON" -m venv "$MADE/venv"
BIN=$MADE/venv/bin
install() {
  "$BIN/python" -m pip install --quiet --disable-pip-version-check --no-compile -c "$ROOT/constraints.txt" "$@"
}
cd "$MADE" # where no src/ is

install "$WHEEL"
"$BIN/flashback" --version
printf '%s\n' '{"title": "json", "text": "The json module encodes and decodes JSON."}' \
  '{"title": "snow", "text": "Snow falls in winter and melts in spring."}' >lines.jsonl
"$BIN/flashback" index lines.jsonl --out IDX
"$BIN/flashback" generate --index IDX --max-new-tokens 8 --json "The json module" >run.json
"$BIN/python" - <<'EOF'
import json

run = json.load(open("run.json"))
assert run["strides"][0]["passages"][0]["title"] == "json", run
print("the wheel writes:", repr(run["text"]))
EOF

install hatchling
"$BIN/python" -m pip uninstall --quiet --yes flashback-ralm
install --no-deps --no-build-isolation "$SDIST"
"$BIN/python" -m pip check
"$BIN/flashback" --version
