"""`generate --prompts`: every prompt once, whatever happens on the way."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_line import NOTES, Outcome, index_notes, refused, run
from flashback.errors import PromptsError
from flashback.files import folder_locked
from flashback.writing.prompts import read_prompts
from flashback.writing.results import Results, open_results

pytestmark = pytest.mark.filterwarnings("ignore:.* passages looked at are longer")
"""The small reader has a token for every byte, and is shown the beginning of a passage."""

PROMPTS = ("The moon: ", "Snow, snow and a network. ", "A", "json " * 12, "The tides follow ")
SMALL = (
    *("--device", "cpu", "--dtype", "float32", "--passage-tokens", "30", "--stride", "8"),
    *("--query-tokens", "22", "--max-new-tokens", "20"),
)


class Many:
    """`flashback generate --prompts` with settings that fit the tiny model's 192 positions."""

    def __init__(self, folder: Path, model: Path, index: Path) -> None:
        self.file = folder / "prompts.jsonl"
        self.out = folder / "results.jsonl"
        self.reader = ("--model", model, "--index", index, *SMALL)
        self.write(*({"prompt": text, "id": f"p{n}"} for n, text in enumerate(PROMPTS)))

    def write(self, *prompts: object) -> None:
        self.file.write_text("".join(json.dumps(one) + "\n" for one in prompts), "utf-8")

    def arguments(self, *more: str | Path) -> tuple[str | Path, ...]:
        return ("generate", *self.reader, "--prompts", self.file, "--out", self.out, *more)

    def __call__(self, *more: str | Path, code: int = 0) -> Outcome:
        return run(*self.arguments("--batch-size", "2", *more), code=code)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text("utf-8").splitlines()]


@pytest.fixture
def many(tmp_path: Path, model_folder: Path, index: Path) -> Many:
    return Many(tmp_path, model_folder, index)


def test_an_id_that_no_file_can_hold_is_refused_before_anything_is_written() -> None:
    line = json.dumps({"prompt": "a", "id": "x\ud800"}).encode()
    with pytest.raises(PromptsError, match=r"f line 1: the id has half a character"):
        read_prompts("f", line)


untrained = pytest.mark.filterwarnings("ignore:.* was not trained for append")


def written(records: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What must not depend on how often writing was interrupted, nor on batches."""
    keys = ("line", "id", "prompt", "tokens", "text", "finish_reason", "jumps", "passages")
    return sorted(tuple(json.dumps(record[key]) for key in keys) for record in records)


@untrained
@pytest.mark.parametrize("pattern", ["none", "append", "prepend", "slot"])
def test_texts_are_those_that_single_prompts_give(many: Many, pattern: str) -> None:
    outcome = many("--pattern", pattern)
    assert (outcome.out, outcome.err) == ("", "")
    records = sorted(many.records, key=lambda record: record["line"])
    assert [record["id"] for record in records] == [f"p{n}" for n in range(5)]
    for record, text in zip(records, PROMPTS, strict=True):
        alone = run("generate", *many.reader, "--pattern", pattern, "--json", "--", text).record
        assert record["prompt"] == text
        assert record["tokens"] == alone["tokens"]
        assert record["text"] == alone["text"]
        titles = [[hit["title"] for hit in stride["passages"]] for stride in alone["strides"]]
        assert [[hit["title"] for hit in hits] for hits in record["passages"]] == titles


def test_json_writes_everything_about_each_text(many: Many) -> None:
    many("--json")
    keys = ("arranged", "tokens", "passages", "seconds")
    assert all(key in stride for one in many.records for stride in one["strides"] for key in keys)


def test_standard_input_is_a_file_of_prompts_too(many: Many) -> None:
    many()
    expected = many.records
    out = many.out.with_name("other.jsonl")
    content = many.file.read_bytes()
    run("generate", *many.reader, "--prompts", "-", "--out", out, input=content)
    assert written([json.loads(line) for line in out.read_text().splitlines()]) == written(expected)


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_after_an_interruption_the_same_command_goes_on(
    many: Many, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """Ctrl-C after some texts, in the middle of writing the next."""
    many()
    expected = many.records
    many.out.unlink()
    plain = Results.append

    def interrupted(results: Results, record: dict[str, Any]) -> None:
        if len(many.out.read_bytes().splitlines()) == kept:
            results._file.write(b'{"line": 3, "te')
            raise KeyboardInterrupt
        plain(results, record)

    with monkeypatch.context() as patch:
        patch.setattr(Results, "append", interrupted)
        assert "interrupted" in many(code=130).err
    before = many.out.read_bytes()
    assert before.endswith(b'"te')
    many("--batch-size", "3")
    assert many.out.read_bytes().startswith(before.removesuffix(b'{"line": 3, "te'))
    assert written(many.records) == written(expected)


def test_when_all_is_there_nothing_is_written(many: Many) -> None:
    many()
    before = many.out.read_bytes()
    many()
    assert many.out.read_bytes() == before


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(0, 400), damage=st.binary(max_size=3).filter(lambda part: b"\n" not in part))
def test_a_file_cut_anywhere_is_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, cut: int, damage: bytes
) -> None:
    """At every byte, with anything behind the cut: what is whole is kept, the rest comes again."""
    out = tmp_path_factory.mktemp("run") / "out.jsonl"
    made = {"settings": {"seed": 1}}
    lines = [{"line": number, "text": "雪\n\r\x85\u2028" * number} for number in range(1, 6)]
    with open_results(out, made) as results:
        for line in lines:
            results.append(line)
    whole = out.read_bytes()
    out.write_bytes(whole[:cut] + damage)
    with open_results(out, made) as results:
        assert results.done == {line["line"] for line in lines[: whole[:cut].count(b"\n")]}
        for line in lines:
            if line["line"] not in results.done:
                results.append(line)
    assert out.read_bytes() == whole


# Results of another run


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        (("--seed", "7"), "settings.sampling.seed 0, not 7"),
        (("--pattern", "append"), "settings.frame"),
        (("--json",), "json false, not true"),
    ],
)
@untrained
def test_results_of_other_settings_are_refused(
    many: Many, more: tuple[str, ...], difference: str
) -> None:
    many()
    before = many.out.read_bytes()
    message = refused(*many.arguments(*more), code=1)
    assert f"begun with {difference}" in message
    assert "; give another --out" in message
    assert many.out.read_bytes() == before


def test_results_of_other_prompts_or_of_another_index_are_refused(
    many: Many, tmp_path: Path
) -> None:
    many()
    more = NOTES | {"new.txt": "A new text."}
    other = tmp_path / "other"
    for name, text in more.items():
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text(text, "utf-8")
    run("index", other, "--out", tmp_path / "OTHER")
    line = refused(*many.arguments("--index", tmp_path / "OTHER"), code=1)
    assert "begun with index " in line
    many.write("another")
    assert "begun with prompts.count 5, not 1" in refused(*many.arguments(), code=1)


def test_a_file_that_is_nobodys_is_left_alone(many: Many) -> None:
    many.out.write_text("my notes\n")
    assert "which says how it was made, is missing" in refused(*many.arguments(), code=1)
    assert many.out.read_text() == "my notes\n"


def test_damaged_results_are_refused(many: Many) -> None:
    many()
    many.out.write_text("{}\n" + many.out.read_text())
    assert "line 1 is no result; the file is damaged" in refused(*many.arguments(), code=1)


def test_two_processes_do_not_write_into_one_file(many: Many) -> None:
    many.out.touch()
    with folder_locked(many.out):
        assert "another process is writing" in refused(*many.arguments(), code=1)


# Usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected PROMPT or --prompts FILE, found neither"),
        (("Once", "--prompts", "FILE"), "found both"),
        (("Once", "--out", "OUT"), "--out goes with --prompts"),
        (("Once", "--batch-size", "2"), "--batch-size goes with --prompts"),
        (("--prompts", "FILE"), "--prompts needs --out FILE"),
        (("--prompts", "FILE", "--out", "nowhere/OUT"), "there is no folder"),
        (("--prompts", "FILE", "--out", "-"), "--out -: expected a file's name"),
        (("--prompts", ".", "--out", "OUT"), "found a folder"),
        (("--prompts", "missing", "--out", "OUT"), "found no such file"),
        (("--prompts", "FILE", "--out", "OUT", "--batch-size", "0"), "0 is not in the range"),
        (("--prompts", "FILE", "--out", "OUT", "--explain"), "--explain prints"),
    ],
)
def test_usage_errors_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text('"Once"\n')
    assert message in refused("generate", "--pattern", "none", *arguments)
    assert not Path("OUT").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"Once upon", "not JSON (Expecting value"),
        (b"\xff", "bytes that are not UTF-8"),
        (b"12", "found a number; expected a JSON string or"),
        (b"[]", "found a list"),
        (b"null", "found null"),
        (b"true", "found true or false"),
        (b'{"text": "a"}', "found an object without prompt"),
        (b'{"prompt": 1}', "found an object whose prompt is no text"),
        (b'{"prompt": "a", "id": []}', "the id is neither text nor a number"),
        (b'{"prompt": "a", "id": true}', "the id is neither text nor a number"),
        (b'{"prompt": "a", "id": NaN}', "the id is nan; expected text or a finite number"),
        (b'{"prompt": "a", "id": "x"}', "the id 'x' is that of line 1"),
        (b'{"prompt": "a", "id": 1, "seed": 2}', "found 'seed' beside prompt and id"),
        (b'"\\ud800"', "half a character"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_named(line: bytes, message: str) -> None:
    with pytest.raises(PromptsError) as error:
        read_prompts("FILE", b'{"prompt": "a", "id": "x"}\n\n' + line + b"\n")
    assert str(error.value).startswith("FILE line 3: ")
    assert message in str(error.value)
    assert len(str(error.value)) < 200


def test_prompts_are_strings_or_objects_and_empty_lines_are_none() -> None:
    file = read_prompts("FILE", '"雪"\n \n{"prompt": "a"}\r\n{"prompt": "b", "id": "x"}'.encode())
    assert [(one.line, one.id, one.text) for one in file.prompts] == [
        (1, 1, "雪"),
        (3, 3, "a"),
        (4, "x", "b"),
    ]


def test_results_go_into_a_file_only(many: Many) -> None:
    os.mkfifo(many.out)
    assert "is no regular file" in refused(*many.arguments(), code=1)


def test_a_full_disk_names_the_file_of_results(many: Many, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flashback.writing.results.os.fsync", full)
    assert refused(*many.arguments(), code=1).endswith("No space left on device\n")
    assert "standard output" not in refused(*many.arguments(), code=1)


def test_a_file_without_prompts_is_refused() -> None:
    with pytest.raises(PromptsError, match="found no prompts"):
        read_prompts("FILE", b"\n\n")


def test_a_prompt_that_does_not_fit_is_refused_before_any_is_written(many: Many) -> None:
    many.write("fits", "x" * 300)
    line = refused(*many.arguments(), code=1)
    assert "prompts.jsonl line 2: " in line
    assert not many.out.exists()
    assert not many.out.with_name(f"{many.out.name}.run.json").exists()
    many.write("fits", "x" * 300)
    many("--truncate")
    assert len(many.records) == 2


def test_a_digest_tells_indexes_apart(tmp_path: Path) -> None:
    from flashback.retrieval.index_folder import read_manifest

    one = read_manifest(index_notes(tmp_path)).digest
    assert one == read_manifest(tmp_path / "IDX").digest
    (tmp_path / "text.txt").write_text("Another text.")
    run("index", tmp_path / "text.txt", "--out", tmp_path / "OTHER")
    assert one != read_manifest(tmp_path / "OTHER").digest


@pytest.mark.parametrize(
    "content",
    [
        b'"a"\n"b"',
        b'\xef\xbb\xbf"a"\n"b"\n',
        b'\xef\xbb\xbf"a"\r\n"b"\r\n',
        b'\xef\xbb\xbf{"prompt": "a"}\n\n{"prompt": "b"}',
        b'\xef\xbb\xbf\n"a"\n"b"',
    ],
)
def test_a_byte_order_mark_and_the_ends_of_lines_are_no_part_of_a_prompt(content: bytes) -> None:
    assert [one.text for one in read_prompts("FILE", content).prompts] == ["a", "b"]


@pytest.mark.parametrize("given", ["x", "", 0, 7, 1.0, -2.5, 1e300])
def test_an_id_is_any_text_or_number(given: Any) -> None:
    (one,) = read_prompts("FILE", json.dumps({"prompt": "a", "id": given}).encode()).prompts
    assert (one.id, type(one.id)) == (given, type(given))
