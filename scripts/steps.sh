# Read by the benchmark scripts: steps of which one that fails does not lose the others.
#
# Sets OUT; expects LIMIT, the seconds that all steps together may take.

PYTHON=${PYTHON:-python3}
STARTED=$SECONDS
FAILED=()

# step NAME COMMAND...: run it in what is left of the time; its output goes to OUT/NAME.log.
step() {
  local name=$1 left=$((LIMIT - (SECONDS - STARTED))) began=$SECONDS
  shift
  if ((left > 0)) && timeout "$left" "$@" >"$OUT/$name.log" 2>&1; then
    echo "$name: done in $((SECONDS - began)) s"
  else
    FAILED+=("$name")
    echo "$name: FAILED or out of time after $((SECONDS - began)) s; see $OUT/$name.log" >&2
  fi
}

# runtime NAME OPTION...: `flashback bench runtime`, its record and figure in OUT/runtime-NAME.*
runtime() {
  local record="$OUT/runtime-$1"
  step "runtime-$1" sh -c 'record=$1 python=$2; shift 2
    "$python" -m flashback bench runtime "$@" --json --plot "$record.png" >"$record.part" &&
    mv "$record.part" "$record.json"' - "$record" "$PYTHON" "${@:2}"
  rm -f "$record.part"
}

# finish: the tables of all records, what failed, and the exit code.
finish() {
  step tables "$PYTHON" docs/write_runtime_tables.py "$OUT"
  if ((${#FAILED[@]})); then
    echo "failed: ${FAILED[*]}" >&2
    exit 1
  fi
  echo "everything is in $OUT; the tables are in $OUT/runtime.md"
}
