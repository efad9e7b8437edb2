"""scripts/conversation_cost.py: what it asks a server, and what it reports."""

import json
from pathlib import Path

import openai
import pytest

import conversation_cost
from conversation_cost import Messages, Run, Turn, measured, table, with_system
from servers import chat_reader, serving

SYSTEM = "Answer every question of a visitor in one short sentence."


def chat(name: str, turns: int = 3) -> Messages:
    """A conversation that begins unlike others."""
    asked = [{"role": "user", "content": f"{name} asks {n}"} for n in range(turns)]
    said = {"role": "assistant", "content": "yes"}
    return [message for question in asked for message in (question, said)]


@pytest.mark.parametrize("together", [1, 3])
def test_conversations_share_only_what_their_own_run_cached(together: int) -> None:
    chats = [with_system(chat(name), SYSTEM) for name in ("ann", "bob", "cleo")]
    with serving(chat_reader(window=1024)) as served:
        found = [
            measured(
                Run(served.client(), served.service.model, "slot", 4, salt), chats, 2, together
            )
            for salt in ("first", "second")
        ]
    for run in found:
        assert [len(turns) for turns in run] == [2, 2, 2]
        assert min(turns[0].cached for turns in run) == 0
        assert all(turns[1].cached > 0 for turns in run)
    if together == 1:
        assert all(turns[0].cached > len(SYSTEM) for run in found for turns in run[1:])


def test_only_the_turns_that_are_reported_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def turn(_: Run, messages: Messages) -> Turn:
        asked.append(len(messages))
        return Turn(9, 7, 2, 1, 0.5)

    monkeypatch.setattr(Run, "_turn", turn)
    run = Run(openai.OpenAI(api_key="none"), "m", "slot", 4, "salt")
    found = measured(run, [chat("ann", 5)], 2)
    assert asked == [1, 3]
    assert list(table(found))[-1].endswith(": 7 of 9")


def test_a_system_message_takes_the_place_of_another() -> None:
    own = [{"role": "system", "content": "Other."}, *chat("ann", 1)]
    assert with_system(own, None) == own
    assert with_system(own, SYSTEM) == with_system(chat("ann", 1), SYSTEM)


def test_tables_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chats.jsonl"
    lines = [json.dumps({"messages": chat(name)}) for name in ("ann", "bob")]
    file.write_text("\n".join(lines), "utf-8")
    words = ["conversation_cost", str(file), "--turns", "2", "--max-tokens", "4"]
    with serving(chat_reader(window=1024)) as served:
        words += ["--url", f"{served.url}/v1"]
        monkeypatch.setattr("sys.argv", [*words, "--chats", "1", "--together", "2"])
        conversation_cost.main()
    written = capsys.readouterr().out
    assert written.count("2 conversations, 2 at once") == 2
    assert written.count("prefilled at the first turn") == 2
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match=r"found 2 conversations of 2 turns or more; expected 3"):
        conversation_cost.main()
