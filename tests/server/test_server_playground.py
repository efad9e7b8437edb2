"""The playground in a real Chromium: it writes, compares, and says what went wrong."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from urllib.parse import quote

import pytest

import chromium
from chromium import Page
from flashback.corpus.place import Place
from flashback.patterns.registry import PATTERNS
from flashback.retrieval.protocol import Hit
from flashback.server.prompt_examples import PromptExamples
from flashback.settings import SearchOptions, Settings, StoppingSettings
from flashback.writing.generator import Generator
from servers import DEFAULTS, QueryRetriever, Served, chat_reader, serving
from tiny_readers import tiny_reader

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed")

STATUS = "document.getElementById('status').textContent"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as found:
        yield found


@pytest.fixture
def page() -> Iterator[Page]:
    with chromium.opened() as found:
        yield found


def count(page: Page, selector: str) -> int:
    found: int = page.run(f"document.querySelectorAll({selector!r}).length")
    return found


def test_a_text_streams_in_by_keyboard_and_nothing_comes_from_elsewhere(
    served: Served, page: Page
) -> None:
    page.look(390, 800)
    page.open(f"{served.url}/")
    page.wait("document.getElementById('pattern').value == 'append'")
    assert count(page, ".empty") == 1
    page.run("document.getElementById('prompt').focus()")
    page.call("Input.insertText", text="The tides")
    page.run("document.getElementById('tokens').value = 20")
    page.press("Enter", 13, modifiers=2)
    page.wait(f"{STATUS} == 'finished'")
    expected = served.complete("The tides", max_tokens=20)
    text = page.run("document.querySelector('.text').textContent")
    assert text == "The tides" + expected["choices"][0]["text"]
    assert count(page, ".stride") == len(expected["flashback"]["strides"])
    assert count(page, ".passages li") >= 2
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.complaints == []


def test_prompts_to_pick_are_those_of_the_index(
    served: Served, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "A long text. " * 40
    monkeypatch.setattr(PromptExamples, "of", lambda *_: ["The tides are", long])
    page.open(f"{served.url}/")
    page.wait("document.querySelectorAll('#examples button').length == 2")
    page.run("document.querySelector('#examples button').click()")
    assert page.run("document.getElementById('prompt').value") == "The tides are"
    page.open(f"{served.url}/?long")
    page.wait(f"document.getElementById('prompt').value.length == {len(long)}")


def test_patterns_are_compared_side_by_side(served: Served, page: Page) -> None:
    page.look(1280, 800, dark=True)
    page.open(f"{served.url}/?prompt={quote('The tides')}&tokens=12&compare&run")
    page.wait(f"{STATUS} == 'finished'")
    titles = page.run("[...document.querySelectorAll('.column h2')].map((h) => h.textContent)")
    assert titles == list(PATTERNS)
    assert page.complaints == []


class Placed:
    """Finds a page of a file, and what stands under a heading of another."""

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        page = Hit("a#0", "a", "tides.pdf", "The tide rises.", 2.0, Place(page=3, last_page=4))
        part = Hit("b#0", "b", "", "It falls.", 2.0, Place(heading="The <moon>", line=7))
        return [[page, part][: options.k] for _ in queries]


def test_sources_say_where_they_stand(page: Page) -> None:
    with serving(retriever=Placed()) as own:
        page.open(f"{own.url}/?prompt={quote('The tides')}&tokens=12&passages=2&run")
        page.wait(f"{STATUS} == 'finished'")
        names = page.run(
            "[...document.querySelectorAll('.passages li strong')].map((one) => one.textContent)"
        )
    assert names[:2] == ["tides.pdf, pages 3 to 4", 'b, "The <moon>", line 7']
    assert page.complaints == []


def test_what_goes_wrong_is_said(served: Served, page: Page) -> None:
    page.open(f"{served.url}/?prompt={'x' * 400}&run")
    page.wait("document.querySelector('.error') !== null")
    assert "Shorten the prompt" in page.run("document.querySelector('.error').textContent")
    page.open(f"{served.url}/?run")
    page.wait(f"{STATUS}.startsWith('Type a prompt')")


def test_a_key_is_asked_for(page: Page) -> None:
    with serving(api_key="secret") as own:
        page.open(f"{own.url}/")
        page.wait("!document.getElementById('key-field').hidden")
        assert "key" in page.run("document.getElementById('model').textContent")


def test_what_the_api_takes_the_form_takes(served: Served, page: Page) -> None:
    page.open(f"{served.url}/")
    page.wait("document.getElementById('stride').value !== ''")
    for field, value in (("temperature", "0.25"), ("passages", "10"), ("stride", "600")):
        page.run(f"document.getElementById('{field}').value = {value}")
    assert page.run("document.getElementById('form').checkValidity()")
    page.run("document.getElementById('stride').value = 0")
    assert not page.run("document.getElementById('form').checkValidity()")


def answered(page: Page, turns: int) -> None:
    """Wait until so many turns stand there, the last one finished."""
    page.wait(f"document.querySelectorAll('.column').length == {turns} && {STATUS} == 'finished'")


def say(page: Page, text: str) -> None:
    page.run("document.getElementById('prompt').focus()")
    page.call("Input.insertText", text=text)
    page.press("Enter", 13)


def test_a_conversation_has_a_meter_and_sources_at_every_turn(page: Page) -> None:
    with serving(chat_reader(window=640)) as own:
        page.look(390, 900)
        page.open(f"{own.url}/?chat&tokens=8&system=Be%20brief.")
        page.wait("document.body.className == 'chat'")
        say(page, "The tides")
        answered(page, 1)
        page.run("document.getElementById('pattern').value = 'slot'")
        say(page, "And the moon?")
        answered(page, 2)
        said = page.run("messages")
        assert [one["role"] for one in said] == ["user", "assistant"] * 2
        facts = page.run(
            "[...document.querySelectorAll('.column > .facts')].map((p) => p.textContent)"
        )
        pattern = r"\d+ reused · \d+ prefilled · [\d.]+ tokens/s · 8 tokens · [\d.]+ s"
        assert all(re.fullmatch(pattern, one) for one in facts), facts
        assert page.run("[...document.querySelectorAll('.said')].map((p) => p.textContent)") == [
            "The tides",
            "And the moon?",
        ]
        titles = page.run("[...document.querySelectorAll('.column h2')].map((h) => h.textContent)")
        assert titles == ["append", "slot"]
        assert count(page, ".column .passages li") >= 2
        assert page.run("document.documentElement.scrollWidth") <= 390
        messages = [{"role": "system", "content": "Be brief."}, *said[:3]]
        alone = Settings(replace(DEFAULTS, pattern="slot"), stopping=StoppingSettings(8))
        expected = Generator(own.reader, own.service.engine, QueryRetriever())
        assert said[3]["content"] == expected.chat(messages, alone).text
        page.run("document.getElementById('new').click()")
        assert (page.run("messages"), count(page, ".empty")) == ([], 1)
    assert page.complaints == []


def test_a_message_that_was_not_answered_stays_in_the_form(page: Page) -> None:
    with serving(chat_reader()) as own:
        page.open(f"{own.url}/?chat&prompt={'x' * 400}&run")
        page.wait("document.querySelector('.error') !== null")
        page.wait(f"{STATUS} == 'not answered'")
        assert page.run("document.getElementById('prompt').value") == "x" * 400
        assert page.run("messages") == []


def test_a_model_without_a_template_has_no_conversation_view(page: Page) -> None:
    with serving(tiny_reader()) as own:
        page.open(f"{own.url}/?chat")
        page.wait("document.getElementById('stride').value !== ''")
        assert page.run("document.getElementById('chat').disabled")
        assert page.run("document.body.className") == ""
