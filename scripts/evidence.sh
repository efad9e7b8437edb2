#!/usr/bin/env bash
# The figures of SmolLM2 in docs/training.md and docs/evaluation.md: hours of a CPU; interrupted, it goes on.
#
#   scripts/evidence.sh DATA OUT [PART ...]
#
# DATA holds docs_passages.jsonl.gz and docs_heldout.jsonl.gz (lines with id, title, text), xquad_en.json,
# qed_dev.jsonl.gz, mtrag_chats.jsonl.gz, mtrag_passages.jsonl.gz, and wikitext2_valid.txt.gz; OUT gets indexes, adapters, answers, tables.
# Parts: adapters, table, untrained (the other rows on the targets of table), answers, trained (on answers, in chats), talks,
# swap, sweeps, pareto (its times want an idle machine), wikitext; all of them, if none is named.
# FLASHBACK replaces the command, MODEL the reader.
set -euo pipefail
[ $# -ge 2 ] || {
  echo "evidence.sh: found $# arguments; expected evidence.sh DATA OUT [PART ...]" >&2
  exit 2
}
DATA=$1 OUT=$2
shift 2
[ $# -gt 0 ] || set -- adapters table untrained answers trained talks swap sweeps pareto wikitext
for part in "$@"; do
  case $part in
    adapters | table | untrained | answers | trained | talks | swap | sweeps | pareto | wikitext) ;;
    *)
      echo "evidence.sh: found $part; expected adapters, table, untrained, answers, trained, talks, swap, sweeps, pareto or wikitext" >&2
      exit 2
      ;;
  esac
done
FLASHBACK=${FLASHBACK:-flashback} MODEL=${MODEL:-smollm2}
HERE=$(cd "$(dirname "$0")" && pwd)
ADAPTER=smollm2-adapter # what ships
READER=(--model "$MODEL" --dtype float32)
mkdir -p "$OUT"

# A file made of what a command prints; it appears whole.
made() {
  local file=$OUT/$1
  shift
  [ -e "$file" ] || { "$@" > "$file.part" && mv "$file.part" "$file"; }
}

index() {
  local name=$1
  shift
  [ -e "$OUT/$name" ] || "$FLASHBACK" index "$@" --out "$OUT/$name" --model "$MODEL"
}

documents() {
  made train.jsonl python3 "$HERE/join_passages.py" "$DATA/docs_passages.jsonl.gz"
  made heldout.jsonl python3 "$HERE/join_passages.py" "$DATA/docs_heldout.jsonl.gz"
  made passages.jsonl gunzip -c "$DATA/docs_passages.jsonl.gz"
  index DOCS "$OUT/passages.jsonl"
}

# One row at a time trains in its own process: two of them use two cores better than one process does.
reproduce() {
  documents
  "$FLASHBACK" reproduce "${READER[@]}" --train "$OUT/train.jsonl" --evaluate "$OUT/heldout.jsonl" \
    --index "$OUT/DOCS" --out "$OUT/TABLE" --echo-tokens 16 --learning-rate 2e-3 --dropout 0 --steps 200 \
    --windows-per-step 2 --max-windows 400 --train-strides 4 --window-tokens 256 --checkpoint-steps 10 \
    --log-steps 5 --evaluate-windows 140 --frame text --frame echo "$@"
}

adapters() { for row in append-trained-echo prepend-trained none; do reproduce --adapter-row "$row"; done; }

table() { reproduce --adapter-row none --adapter-row prepend-trained --adapter-row append-trained-echo; }

# The untrained rows on the targets of `table`.
untrained() {
  documents
  "$FLASHBACK" eval perplexity "$OUT/heldout.jsonl" --index "$OUT/DOCS" "${READER[@]}" --window-tokens 256 \
    --max-windows 140 --scores "$OUT/untrained" --per-document "$OUT/untrained.jsonl"
}

# The paragraphs that questions are about, and as distractors the documentation.
paragraphs() {
  documents
  made paragraphs.jsonl python3 -c '
import json, sys
for article in json.load(open(sys.argv[1], encoding="utf-8"))["data"]:
    for number, one in enumerate(article["paragraphs"]):
        title = article["title"]
        print(json.dumps({"id": f"{title}-{number}", "title": title, "text": one["context"]}))
' "$DATA/xquad_en.json"
  index XQUAD "$OUT/paragraphs.jsonl" "$OUT/passages.jsonl" --passage-tokens 256 --passage-words 250
}

answers() {
  paragraphs
  local ask=("$FLASHBACK" eval qa "$DATA/xquad_en.json" --index "$OUT/XQUAD" "${READER[@]}" --passage-tokens 256
    --batch-size 16)
  for k in 1 3; do
    "${ask[@]}" --passages "$k" --pattern none --pattern prepend --pattern slot --out "$OUT/xquad-$k.jsonl"
    # Only appended: an adapter is asked in every pattern that is named.
    "${ask[@]}" --passages "$k" --pattern append --adapter "$ADAPTER" --out "$OUT/xquad-append-$k.jsonl"
  done
}

# FlashBack's training on answers, and the same for passages in front.
trained() {
  paragraphs
  made qed.jsonl gunzip -c "$DATA/qed_dev.jsonl.gz"
  local echo=(--echo-tokens 40)
  for pattern in append prepend; do
    [ -e "$OUT/answers-$pattern/flashback.json" ] ||
      "$FLASHBACK" train --questions "$OUT/qed.jsonl" --oracle "${READER[@]}" --pattern "$pattern" --passage-tokens 256 \
        "${echo[@]}" --dropout 0 --learning-rate 2e-3 --steps 100 --windows-per-step 8 --checkpoint-steps 5 --log-steps 5 \
        --out "$OUT/answers-$pattern"
    "$FLASHBACK" eval qa "$DATA/xquad_en.json" --index "$OUT/XQUAD" "${READER[@]}" --passage-tokens 256 --passages 1 \
      --batch-size 16 --limit 300 --pattern "$pattern" --adapter "$OUT/answers-$pattern" --out "$OUT/trained-$pattern.jsonl"
    echo=()
  done
}

talks() {
  made chats.jsonl zgrep '"ANSWERABLE"' "$DATA/mtrag_chats.jsonl.gz"
  made talked.jsonl gunzip -c "$DATA/mtrag_passages.jsonl.gz"
  index MTRAG "$OUT/talked.jsonl" --passage-tokens 512 --passage-words 500 --no-deduplicate
  "$FLASHBACK" eval qa "$OUT/chats.jsonl" --oracle --index "$OUT/MTRAG" "${READER[@]}" --limit 40 \
    --passage-tokens 512 --max-new-tokens 64 --pattern none --pattern prepend --pattern slot \
    --out "$OUT/talks.jsonl"
}

swap() {
  for asked in behind before; do
    "$FLASHBACK" eval swap "${READER[@]}" --form text --asked "$asked" --distance 64 --passage-tokens 64 \
      --max-new-tokens 1 --pattern slot --recompute-tokens 1,16,all --exchange gold-counterfactual \
      --out "$OUT/swap-$asked.jsonl"
  done
}

# Perplexities of running text, then answers to questions.
sweeps() {
  documents
  local score=("$FLASHBACK" eval perplexity "$OUT/heldout.jsonl" --index "$OUT/DOCS" "${READER[@]}" --scores "$OUT/sweeps"
    --pattern none --pattern prepend --pattern slot)
  for swept in s=4,8,16,32,64 k=1,2,4 l=16,32,64 m=32,64,128,256; do
    "${score[@]}" --sweep "$swept" --max-windows 4
  done
  for window in 512 1024 2048; do "${score[@]}" --window-tokens "$window" --max-windows $((2048 / window)); done
  paragraphs
  local ask=("$FLASHBACK" eval qa "$DATA/xquad_en.json" --index "$OUT/XQUAD" "${READER[@]}" --limit 300 --batch-size 16
    --pattern slot)
  for k in 1 2 4; do "${ask[@]}" --passage-tokens 256 --passages "$k" --out "$OUT/answers-k$k.jsonl"; done
  for m in 64 128; do "${ask[@]}" --passage-tokens "$m" --passages 1 --out "$OUT/answers-m$m.jsonl"; done
}

pareto() {
  documents
  "$FLASHBACK" bench pareto "$OUT/heldout.jsonl" --index "$OUT/DOCS" "${READER[@]}" --adapter "$ADAPTER" \
    --sweep s=8,16,32 --sweep k=1,2 --max-windows 4 --out "$OUT/pareto"
}

# In-Context RALM's table: the last N - s tokens before each stride, WikiText-2's articles, two of three in the index.
wikitext() {
  made articles.jsonl python3 -c '
import gzip, json, re, sys
text = gzip.open(sys.argv[1], "rt", encoding="utf-8").read()
for number, one in enumerate(re.split(r"(?m)^(?= = [^=])", text)[1:]):
    title = one.partition("\n")[0].strip(" =")
    print(json.dumps({"id": f"{number:02}-{number % 3}", "title": title, "text": one}))
' "$DATA/wikitext2_valid.txt.gz"
  made indexed.jsonl grep -v '^{"id": "..-0"' "$OUT/articles.jsonl"
  made scored.jsonl grep '^{"id": "..-0"' "$OUT/articles.jsonl"
  index WIKITEXT "$OUT/indexed.jsonl"
  for pair in 32:12 4:8; do
    "$FLASHBACK" eval perplexity "$OUT/scored.jsonl" --index "$OUT/WIKITEXT" "${READER[@]}" --protocol sliding \
      --stride "${pair%:*}" --max-windows "${pair#*:}" --pattern none --pattern prepend --control random --control oracle \
      --scores "$OUT/wikitext"
  done
  # The slot beside prepending: contexts from where a window begins, a passage exchanged every 16 tokens.
  "$FLASHBACK" eval perplexity "$OUT/scored.jsonl" --index "$OUT/WIKITEXT" "${READER[@]}" --window-tokens 256 \
    --max-windows 16 --pattern prepend --pattern slot --scores "$OUT/wikitext"
}

for part in "$@"; do "$part"; done
