"""`flashback ask` and `flashback chat`: one question, and conversations kept between runs."""

import json
import os
import signal
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command_line import Outcome, refused, run, start
from flashback.patterns.registry import PATTERNS
from flashback.writing import generator
from flashback.writing.chat import Cut, turn_of
from flashback.writing.generator import Generator
from flashback.writing.stream import Writing

pytestmark = pytest.mark.filterwarnings("ignore:.* passages looked at are longer")
"""The small reader has a token for every byte, and is shown the beginning of a passage."""

SHORT = ("--device", "cpu", "--dtype", "float32", "--passage-tokens", "48", "--max-new-tokens", "6")
Asked = list[tuple[str, list[tuple[str, str]]]]
"""The pattern and the messages of every answer."""


class Chat:
    """Runs `flashback chat` with lines as standard input."""

    def __init__(self, *words: str | Path) -> None:
        self.words = words

    def __call__(self, *lines: str, more: tuple[str | Path, ...] = (), code: int = 0) -> Outcome:
        said = "".join(f"{line}\n" for line in lines).encode()
        return run("chat", *self.words, *more, input=said, code=code)


@pytest.fixture
def chat(index: Path, chat_model: Path) -> Chat:
    return Chat("--index", index, "--model", chat_model, *SHORT)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found: Asked = []
    stream = Generator.stream_chat

    def kept(self: Generator, messages: Any, settings: Any) -> Writing:
        said = [(one["role"], one["content"]) for one in messages]
        found.append((settings.retrieval.pattern, said))
        return stream(self, messages, settings)

    monkeypatch.setattr(Generator, "stream_chat", kept)
    return found


def test_a_question_is_answered_with_its_sources(index: Path, chat_model: Path) -> None:
    words = ("ask", "--index", index, "--model", chat_model, *SHORT, "What follows the moon?")
    record = run(*words, "--json").record
    assert run(*words).out == f"{record['answer']}\n[1] moon.md, line 1\n"
    assert [one["title"] for one in record["sources"]] == ["moon.md"]


def test_messages_are_answered_with_what_was_said_before(chat: Chat, asked: Asked) -> None:
    out = chat("What follows the moon?", "", "And the socket?", more=("--system", "Be brief.")).out
    assert "[1] moon.md, line 1\n" in out
    assert "[1] net/socket.txt, line 1\n" in out
    (_, first), (_, second) = asked
    assert first == [("system", "Be brief."), ("user", "What follows the moon?")]
    answer = second[2][1]
    assert out.startswith(f"{answer}\n[1] moon.md, line 1\n")
    assert second == [*first, ("assistant", answer), ("user", "And the socket?")]


@pytest.mark.parametrize("first", ["What follows the moon?", "/help"])
def test_a_byte_order_mark_is_no_text(chat: Chat, asked: Asked, first: str) -> None:
    out = chat(f"\ufeff{first}", "And the \ufeffsocket?").out
    said = [messages[-1][1] for _, messages in asked]
    assert said[-1] == "And the \ufeffsocket?"
    assert said[:-1] == ([] if first == "/help" else [first])
    assert ("/quit" in out) == (first == "/help")


def test_commands(chat: Chat, asked: Asked) -> None:
    out = chat(
        *("/help", "/sources", "What follows the moon?", "/sources", "/pattern"),
        *("/pattern none", "moon", "/sources", "/new", " /etc", "/quit", "never said"),
        more=("--pattern", "slot"),
    ).out
    for command in ("/new", "/pattern NAME", "/sources", "/help", "/quit", *PATTERNS):
        assert command in out
    assert out.count("no passage was in view") == 2
    assert "    The tides follow the moon, which pulls" in out
    assert f"pattern slot: {PATTERNS['slot'].summary}\n" in out
    assert "a new conversation\n" in out
    assert [pattern for pattern, _ in asked] == ["slot", "none", "none"]
    assert len(asked[1][1]) == 3
    assert asked[2][1] == [("user", "/etc")]


def test_a_conversation_is_kept_between_runs(chat: Chat, asked: Asked, tmp_path: Path) -> None:
    kept = ("--file", tmp_path / "talk.json", "--system", "Be brief.")
    chat("moon", more=kept)
    chat("snow", more=kept)
    chat("json", more=kept[:2])
    said = json.loads((tmp_path / "talk.json").read_bytes())
    roles = ["system", *["user", "assistant"] * 3]
    assert [one["role"] for one in said] == roles
    assert asked[2][1] == [(one["role"], one["content"]) for one in said[:-1]]
    chat("/new", more=kept[:2])
    assert json.loads((tmp_path / "talk.json").read_bytes()) == said[:1]
    assert "no such system message" in refused("chat", *chat.words, *kept[:3], "Be wordy.")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not a kept conversation: Expecting property name"),
        (b"\xff", "not a kept conversation: 'utf-8' codec"),
        (b"{}", "messages={}: expected a list"),
        (b'[{"role": "user"}]', "messages.0.content=None: expected a text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"role": "user", "content": ' + b"[" * 100_000, "nested too deeply"),
        (b'[{"role": "user", "content": "\\ud800"}]', "messages.0: half a character"),
        (b'[{"role": "\\udfff", "content": "a"}]', "messages.0: half a character"),
        (b'[{"role": "user", "content": "a", "id": 1}]', "messages.0: found 'id'; expected only"),
        (
            b'[{"role": "user", "content": [{"type": "text", "text": "a", "id": 1}]}]',
            "messages.0.content.0: found 'id'",
        ),
        (None, "found a folder or a device; expected a file"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused(
    chat: Chat, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "talk.json"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    assert reason in refused("chat", *chat.words, "--file", file)
    nowhere = tmp_path / "no" / "talk.json"
    assert "there is no folder" in refused("chat", *chat.words, "--file", nowhere)


def test_a_file_is_written_after_an_answer_and_not_before(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    written = b'[{"role": "user", "name": "Ada", "content": [{"type": "text", "text": "a"}]},'
    written += b' {"role": "assistant", "content": "b"}]'
    file.write_bytes(written)
    chat("/help", more=("--file", file))
    assert file.read_bytes() == written
    chat("moon", more=("--file", file))
    said = json.loads(file.read_bytes())
    assert said[0] == {"role": "user", "name": "Ada", "content": "a"}
    assert len(said) == 4
    chat("/help", more=("--file", tmp_path / "new.json"))
    assert not (tmp_path / "new.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs modes of files")
@pytest.mark.parametrize("mode", [None, 0o600, 0o640, 0o644, 0o664])
@pytest.mark.parametrize("linked", [False, True])
def test_a_conversation_is_as_private_as_its_file(
    chat: Chat, tmp_path: Path, mode: int | None, linked: bool
) -> None:
    file = link = tmp_path / "talk.json"
    if mode is not None:
        file.write_text("[]")
        file.chmod(mode)
    if linked:
        link = tmp_path / "link.json"
        link.symlink_to(file)
    chat("moon", more=("--file", link))
    assert len(json.loads(file.read_bytes())) == 2
    assert link.is_symlink() == linked
    assert stat.S_IMODE(file.stat().st_mode) == (mode or 0o600)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/nonsuch", "/nonsuch: no such command; see /help"),
        ("/new now", "/new now: no such command"),
        ("/pattern middle", "--pattern middle: expected one of"),
        ("x" * 700, "the last message and the system's have"),
    ],
)
def test_a_line_that_cannot_be_followed_is_said(chat: Chat, line: str, reason: str) -> None:
    lines = ("/pattern none", line)
    outcome = chat(*lines, code=1 if line.startswith("x") else 2)
    assert reason in outcome.err
    assert outcome.err.count("\n") == 1


def test_what_can_never_be_answered_is_refused_before_the_first_line(
    chat: Chat, index: Path, model_folder: Path
) -> None:
    words = ("chat", "--index", index, "--model", model_folder, *SHORT)
    assert "has no chat template" in refused(*words, code=1)
    long = ("--system", "x" * 900, "--pattern", "slot")
    assert "shorten them" in refused("chat", *chat.words, *long, code=1)
    assert "not UTF-8 in line 1 at byte 2" in refused("chat", *chat.words, input=b"a\xff\n")
    assert "standard input is closed" in refused("chat", *chat.words, input=None)
    no_index = ("chat", "--pattern", "none", *chat.words[2:])
    assert "there is no index" in run(*no_index, input=b"/pattern slot\n", code=2).err


@pytest.mark.filterwarnings("default::flashback.errors.FlashBackWarning")
def test_a_pattern_is_chosen_as_if_it_were_asked_for_at_the_start(chat: Chat) -> None:
    more = ("--pattern", "append", "--echo-tokens", "4")
    assert "--echo-tokens" in chat("/pattern slot", more=more, code=2).err
    assert "was not trained for append" in chat("/pattern append").err


def test_an_outgrown_conversation_says_what_it_left_out_and_what_that_costs(chat: Chat) -> None:
    outcome = chat(*(f"question {at} ".ljust(90, ".") for at in range(9)))
    cuts = outcome.err.splitlines()
    assert 1 <= len(cuts) <= 4  # not at every turn
    for cut in cuts:
        assert cut.startswith("the first ")
        assert "messages were left out: the conversation has" in cut
        assert cut.endswith("tokens were prefilled for this answer")


def test_a_cut_that_moves_is_told_and_one_that_is_over_is_not(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = iter([None, Cut(2, 90, 80), Cut(2, 95, 80), None, None, Cut(4, 99, 80)])
    monkeypatch.setattr(
        generator, "turn_of", lambda *given: replace(turn_of(*given), cut=next(cuts))
    )
    told = chat("a", "b", "c", "d", "e").err.splitlines()  # the first turn is a check
    assert [line.split()[2] for line in told] == ["2", "4"]


def test_ctrl_c_ends_an_answer_and_not_the_conversation(
    chat: Chat, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Writing.__iter__

    def interrupted(self: Writing) -> Any:
        for number, event in enumerate(events(self)):
            if number == 2 and len(asked) == 1:
                signal.raise_signal(signal.SIGINT)
            yield event

    monkeypatch.setattr(Writing, "__iter__", interrupted)
    long = ("--max-new-tokens", "40")
    before = signal.getsignal(signal.SIGINT)
    chat("moon", "snow", more=long)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(asked) == 2
    assert len(asked[1][1]) == 3
    assert 1 <= len(asked[1][1][1][1].encode()) < 40


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_at_a_terminal_a_mistake_does_not_end_the_conversation(chat: Chat, tmp_path: Path) -> None:
    import pty

    kept = tmp_path / "talk.json"
    kept.write_text('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]')
    ours, theirs = pty.openpty()
    process = start("chat", *chat.words, "--pattern", "none", "--file", kept, stdin=theirs)
    os.close(theirs)
    os.write(ours, b"/nonsuch\nmoon\n/pattern\n\x04")
    out, err = process.communicate(timeout=240)
    os.close(ours)
    assert process.returncode == 0
    assert "1 question so far; /help lists" in err.decode()
    assert "flashback: /nonsuch: no such command; see /help" in err.decode()
    assert "pattern none: " in out.decode()
