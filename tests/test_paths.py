"""The two numbered paths of docs/architecture.md, compared with the calls of real runs."""

import re
from itertools import takewhile
from pathlib import Path

import pytest

from command_line import index_notes, run
from flashback.writing.generator import Generator
from servers import serving
from traced import traced

PAGE = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text("utf-8")
AT_THE_START = {"server/serving.py", "server/schema.py"}
"""Entered before a request: they listen, and declare the fields that pydantic checks."""


def steps(title: str) -> list[str]:
    """The modules with which the steps of a path begin."""
    section = PAGE.partition(f"## {title}")[2].partition("\n## ")[0]
    return re.findall(r"^\d+\. `([a-z_/0-9]+\.py)`", section, re.MULTILINE)


def test_a_prompt_takes_the_path_that_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = steps("One prompt, from the command line to the logits")
    first = path.index("writing/generator.py")
    index = index_notes(tmp_path)
    stream = Generator.stream
    with traced() as trace:
        loading: list[str] = []

        def begins(*arguments: object, **options: object) -> object:
            loading.extend(trace.entered)
            trace.entered.clear()
            return stream(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Generator, "stream", begins)
        run("generate", "--index", index, "--pattern", "append", "--max-new-tokens", "20", "A")
    assert [module for module in loading if module in path[:first]] == path[:first]
    assert [module for module in trace.entered if module in path[first:]] == path[first:]


def test_a_request_takes_the_path_that_is_described() -> None:
    path = steps("One request, from the socket to the answer")
    with traced() as trace, serving() as served:
        trace.entered.clear()
        served.complete(max_tokens=9, logprobs=1, echo=True)
        entered = list(trace.entered)
    assert set(path) - AT_THE_START <= set(entered)
    # From the scheduler on there are two threads: one runs the model, one answers.
    ordered = list(takewhile(lambda module: module != "server/prompt_echo.py", path))
    assert len(ordered) == 8
    expected = [module for module in ordered if module not in AT_THE_START]
    assert [module for module in entered if module in expected] == expected
