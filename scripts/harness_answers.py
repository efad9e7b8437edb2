"""The same questions by `flashback eval qa` and by lm-evaluation-harness through the server.

    python scripts/harness_answers.py FILE --index IDX --model MODEL [--form question]
    python scripts/harness_answers.py FILE --index IDX --harness OTHER/bin/lm_eval

FILE has JSON lines with `question` and `answers`. Both ask with a slot and without passages, in
float32, answers of 24 tokens. Answers and scores are compared question by question: exit code 1 if
one differs. The harness's tasks are in `scripts/harness`; it may be installed anywhere.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASKS = Path(__file__).with_name("harness")
ROWS = {"slot": "", "none": "_closed"}
"""Of eval qa, and what the harness's task is called besides its form."""
FORMS = {"chat": "chat/completions", "question": "completions"}
MODELS = {"chat": "local-chat-completions", "question": "local-completions"}
SCORES = ("exact_match", "f1", "substring")
FLASHBACK = (sys.executable, "-m", "flashback")
_SERVING = "serving at "


@dataclass(frozen=True)
class Answer:
    """What was written for a question, and its scores in per cent."""

    written: str
    scores: tuple[float, ...]

    def equals(self, other: "Answer") -> bool:
        """Whether all is the same but for the rounding of scores."""
        pairs = zip(self.scores, other.scores, strict=True)
        return self.written == other.written and all(abs(a - b) < 1e-3 for a, b in pairs)


Answers = dict[str, Answer]
"""By the question's id."""


def asked_here(given: argparse.Namespace, form: str, out: Path) -> dict[str, Answers]:
    """The answers of `flashback eval qa`, by row."""
    patterns = [word for row in ROWS for word in ("--pattern", row)]
    words = ["--form", form, "--max-new-tokens", "24", "--out", str(out), *patterns]
    named = ["--index", given.index, "--model", given.model, "--dtype", "float32"]
    subprocess.run([*FLASHBACK, "eval", "qa", str(given.file), *named, *words], check=True)
    found: dict[str, Answers] = {row: {} for row in ROWS}
    for line in out.read_text("utf-8").splitlines():
        one = json.loads(line)
        if one["row"] in found:
            found[one["row"]][str(one["id"])] = _answer(one["written"], one)
    return found


@contextlib.contextmanager
def serving(given: argparse.Namespace) -> Iterator[str]:
    """A server on a free port while it is needed; its URL."""
    named = ["--index", given.index, "--model", given.model, "--dtype", "float32"]
    command = [*FLASHBACK, "serve", *named, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            for line in server.stderr:
                print(line, end="", file=sys.stderr)
                if line.startswith(_SERVING):
                    yield line.removeprefix(_SERVING).split()[0]
                    return
            raise SystemExit("the server ended before it served")
        finally:
            server.terminate()


def asked_by_harness(
    given: argparse.Namespace, url: str, form: str, folder: Path
) -> dict[str, Answers]:
    """The answers that the harness gets from a server, by row."""
    tasks = {row: f"flashback_{form}{ending}" for row, ending in ROWS.items()}
    arguments = f"model={served_name(url)},base_url={url}/v1/{FORMS[form]}"
    command = [
        *(given.harness, "--model", MODELS[form], "--include_path", str(TASKS)),
        *("--model_args", f"{arguments},tokenizer_backend=None,tokenized_requests=False"),
        *("--tasks", ",".join(tasks.values()), "--metadata", json.dumps({"file": str(given.file)})),
        *("--output_path", str(folder), "--log_samples"),
        *(["--apply_chat_template"] if form == "chat" else []),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    subprocess.run(command, check=True, env=environment)
    return {row: _samples(folder, task) for row, task in tasks.items()}


def served_name(url: str) -> str:
    """The name of a server's model."""
    import openai

    models = openai.OpenAI(base_url=f"{url}/v1", api_key="none").models.list()
    return models.data[0].id


def _samples(folder: Path, task: str) -> Answers:
    (path,) = folder.rglob(f"samples_{task}_2*.jsonl")  # a date follows
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return {one["doc"]["id"]: _answer(one["resps"][0][0], one) for one in lines}


def _answer(written: str, record: dict[str, Any]) -> Answer:
    return Answer(written.strip(), tuple(float(record[name]) for name in SCORES))


def differences(here: Answers, there: Answers) -> Iterator[str]:
    """A line for every question whose answers differ, or that one of them has not."""
    for name in sorted(here.keys() | there.keys()):
        one, other = here.get(name), there.get(name)
        if one is None or other is None or not one.equals(other):
            yield f"question {name}: eval qa {one}, the harness {other}"


def compared(here: dict[str, Answers], there: dict[str, Answers]) -> int:
    """Print both rows' figures and what differs; how many questions do."""
    count = 0
    for row in ROWS:
        for name, found in (("eval qa", here[row]), ("harness", there[row])):
            columns = zip(*(one.scores for one in found.values()), strict=True)
            means = (sum(values) / len(found) for values in columns)
            figures = ", ".join(f"{a} {b:.3f}" for a, b in zip(SCORES, means, strict=True))
            print(f"{row}, {name}: {len(found)} questions, {figures}")
        for line in differences(here[row], there[row]):
            print(line)
            count += 1
    return count


def main() -> None:
    """Ask twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--index", required=True)
    parser.add_argument("--model", default="flashback-mini")
    parser.add_argument("--form", choices=FORMS, default="chat")
    parser.add_argument("--harness", default=shutil.which("lm_eval") or "lm_eval")
    given = parser.parse_args()
    given.file = given.file.resolve()
    with tempfile.TemporaryDirectory() as folder:
        here = asked_here(given, given.form, Path(folder, "answers.jsonl"))
        with serving(given) as url:
            there = asked_by_harness(given, url, given.form, Path(folder, "harness"))
    different = compared(here, there)
    print(f"{different} questions differ" if different else "every answer is the same")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
