"""Exchanges of passages: prompts as the stride loop makes them, and exact log-probabilities."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from families import tiny_model
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import Completion
from flashback.errors import PromptsError, PromptTooLong, SettingsError
from flashback.patterns.prompt import Ids, Prompt
from flashback.questions.given_answers import GivenTokens
from flashback.questions.run import InMemory, Record
from flashback.questions.swap_cases import Case, Variant
from flashback.questions.swap_prompts import Asker, SwapRow, settled_swap_form, swap_rows
from flashback.questions.swap_run import Swaps
from flashback.questions.swap_settings import AskedWhen, Exchange, SwapForm, SwapSettings
from flashback.questions.swap_table import SwapTable
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit, NoRetriever
from flashback.sampling import Sampler
from flashback.settings import (
    RetrievalSettings,
    SamplingSettings,
    SearchOptions,
    Settings,
    StoppingSettings,
)
from flashback.writing.generator import Generator
from recompute import block_mask_logits, recomputed_logits
from servers import TEMPLATE
from tiny_readers import deaf_reader, tiny_reader

GOLD, OTHER, UNRELATED = Variant
CASE = Case(
    "c",
    "lookup",
    "What is the code?",
    {GOLD: "The code is 17 here", OTHER: "The code is 45 here", UNRELATED: "The moon was full."},
    {GOLD: ("17",), OTHER: ("45",)},
)
M = 18
"""m: every passage of the case is cut to as many bytes."""
SWAP = Exchange(GOLD, OTHER)
FILLER = "Grass grows. Wind blows here and there. Water runs down."
SLOTS = (SwapRow("slot", 1), SwapRow("slot", 9), SwapRow("slot"))
KEEPING = (SwapRow("prepend"), SwapRow("append"), SwapRow("none"), SwapRow("slot"))


@pytest.fixture(scope="module")
def reader() -> Reader:
    own = tiny_reader(model=tiny_model("llama", max_position_embeddings=640), window=640)
    own.tokenizer.chat_template = TEMPLATE
    return own


def writer_of(reader: Reader) -> Generator:
    return Generator(reader, LocalEngine(reader.model, reader.window), NoRetriever())


def asker_of(
    writer: Generator,
    row: SwapRow,
    asked: AskedWhen = AskedWhen.BEHIND,
    form: SwapForm = SwapForm.TEXT,
) -> Asker:
    retrieval = RetrievalSettings("none", stride=6, passage_tokens=M)
    stopping = StoppingSettings(max_new_tokens=6, stop=("\n",))
    return Asker(row, writer, form, asked, Settings(retrieval, stopping=stopping), FILLER, 0)


def measured(asker: Asker, exchange: Exchange = SWAP, distance: int = 40) -> Record:
    swaps = Swaps((asker,), (CASE,), (exchange,), (distance,), asker.writer)
    (record,) = swaps.run(InMemory(), lambda _: lambda: None)
    return record


FORMS = [
    *((SwapForm.TEXT, asked) for asked in AskedWhen),
    *((SwapForm.CHAT, asked) for asked in AskedWhen),
]


@pytest.mark.parametrize(("form", "asked"), [*FORMS[:4], (SwapForm.CHAT, AskedWhen.BEFORE)])
def test_everything_again_is_prepending_anew(
    reader: Reader, form: SwapForm, asked: AskedWhen
) -> None:
    """But for later turns of a chat: there a prepended passage stands in the first one."""
    writer = writer_of(reader)
    slot = measured(asker_of(writer, SwapRow("slot"), asked, form))
    prepend = measured(asker_of(writer, SwapRow("prepend"), asked, form))
    assert slot["nats"] == pytest.approx(prepend["nats"], abs=1e-4)
    assert slot["old_nats"] == pytest.approx(prepend["old_nats"], abs=1e-4)
    assert slot["written"] == prepend["written"]
    assert slot["stale_tokens"] == prepend["stale_tokens"] == 0


@pytest.mark.parametrize(("form", "asked"), FORMS)
def test_what_keeps_nothing_does_not_know_the_old_passage(
    reader: Reader, form: SwapForm, asked: AskedWhen
) -> None:
    writer = writer_of(reader)
    rows: tuple[SwapRow, ...] = KEEPING
    if form is SwapForm.CHAT and asked is not AskedWhen.BEFORE:
        rows = (*KEEPING, *SLOTS)  # the history between turns is clean
    for row in rows:
        asker = asker_of(writer, row, asked, form)
        prompts = {
            asker.swapped(replace(CASE, answers=dict.fromkeys((GOLD, OTHER), ("9",))), one, 40)
            for one in (Exchange(OTHER, GOLD), Exchange(UNRELATED, GOLD))
            if asked is not AskedWhen.ANSWERED or one.old is not UNRELATED
        }
        assert len(prompts) == 1, row.name
        assert prompts.pop().stale == 0


@torch.no_grad()
@pytest.mark.parametrize("row", [*SLOTS, *KEEPING[:3]], ids=lambda row: row.name)
@pytest.mark.parametrize(("form", "asked"), FORMS)
def test_log_probabilities_are_those_of_a_plain_pass(
    reader: Reader, form: SwapForm, asked: AskedWhen, row: SwapRow
) -> None:
    asker = asker_of(writer_of(reader), row, asked, form)
    swapped, record = asker.swapped(CASE, SWAP, 40), measured(asker)
    for variant, name in ((OTHER, "nats"), (GOLD, "old_nats")):
        answer = asker.answer_ids(CASE, variant)
        if row.pattern == "slot":
            logits = block_mask_logits(reader.model, swapped.prompt, answer)
        else:
            ids = (*swapped.prompt.arranged, *answer[:-1])
            logits = recomputed_logits(reader.model, ids, len(answer))
        right = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
        assert record[name] == pytest.approx(-float(right.sum()), abs=1e-4)


class Forcing:
    """An engine whose first strides are given, and which keeps the prompts that it saw."""

    def __init__(self, engine: Any, strides: Sequence[Ids]) -> None:
        self.inner, self.capabilities = engine, engine.capabilities
        self.prompts: list[Prompt] = []
        self._strides = list(strides)

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        self.prompts.append(prompt)
        if self._strides:
            sampler = GivenTokens(self._strides.pop(0), (), ())
        completion: Completion = self.inner.complete(prompt, max_tokens, sampler)
        return completion


class InTurn:
    """A text of a case for every search."""

    def __init__(self, *texts: str) -> None:
        self._texts = list(texts)

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [[Hit("p", "d", "", self._texts.pop(0), 1.0)] for _ in queries]


@pytest.mark.parametrize("row", [*SLOTS, *KEEPING[:2]], ids=lambda row: row.name)
@pytest.mark.parametrize("asked", [AskedWhen.BEFORE, AskedWhen.TWICE])
def test_prompts_are_those_of_the_stride_loop(
    reader: Reader, asked: AskedWhen, row: SwapRow
) -> None:
    """A text is forced upon it, stride by stride, and the passage changes within."""
    writer = writer_of(reader)
    asker = asker_of(writer, row, asked)
    swapped = asker.swapped(CASE, SWAP, 60)
    old, new = CASE.passages[GOLD], CASE.passages[OTHER]
    if asked is AskedWhen.BEFORE:
        parts: list[Ids] = [swapped.ids[-9:]]
    else:
        size = len(reader.encode(f"\n\nQuestion: {CASE.question}\nAnswer:"))
        parts = [swapped.ids[-2 * size : -size], swapped.ids[-size:]]
    size = len(parts[0])
    engine = Forcing(writer.engine, parts)
    loop = Generator(reader, engine, InTurn(old, *[new] * len(parts)))
    retrieval = replace(row.asked_with(asker.settings.retrieval), stride=size)
    stopping = StoppingSettings(max_new_tokens=size * (len(parts) + 1), ignore_eos=True)
    begun = swapped.ids[: len(swapped.ids) - size * len(parts)]
    done = loop.generate(begun, Settings(retrieval, stopping=stopping))
    assert engine.prompts[-1] == swapped.prompt
    assert sum(map(len, parts)) + size == len(done.tokens)
    written = measured(asker, distance=60)["written"]
    assert reader.decode(done.strides[-1].tokens[:6]).startswith(written)


@pytest.mark.parametrize("asked", [AskedWhen.BEFORE, AskedWhen.BEHIND])
def test_an_engine_that_saw_the_old_passage_says_the_same(reader: Reader, asked: AskedWhen) -> None:
    """The text is computed with the old passage in view, by the way or in a request of its own."""
    asker = asker_of(writer_of(reader), SLOTS[0], asked)
    alone = measured(asker)
    swapped = asker.swapped(CASE, SWAP, 40)
    seen = swapped.prompt.segments[1]
    assert swapped.stale == len(seen.ids) > 30
    before = Prompt(swapped.prompt.segments[:2], swapped.prompt.layout)
    sampler = Sampler(SamplingSettings(), before.ids)
    completion = asker.writer.engine.complete(before, 1, sampler)
    assert len(list(completion)) == 1
    again = measured(asker)
    assert again == alone | {
        "nats": pytest.approx(alone["nats"], abs=1e-4),
        "old_nats": pytest.approx(alone["old_nats"], abs=1e-4),
    }
    counted = asker.writer.engine.complete(swapped.prompt, 1, Sampler(SamplingSettings(), ()))
    assert len(list(counted)) == 1
    assert counted.usage.cached >= len(before.ids)


def test_stale_tokens_are_those_before_the_last_e(reader: Reader) -> None:
    writer = writer_of(reader)
    stale = [asker_of(writer, SwapRow("slot", e)).swapped(CASE, SWAP, 40).stale for e in (1, 9, 39)]
    assert stale == [39, 31, 1]
    same = Exchange(GOLD, GOLD)
    assert asker_of(writer, SLOTS[0]).swapped(CASE, same, 40).stale == 0


def test_texts_and_conversations(reader: Reader) -> None:
    writer, none = writer_of(reader), SwapRow("none")

    def shown(
        form: SwapForm, asked: AskedWhen, exchange: Exchange = SWAP, distance: int = 8
    ) -> str:
        case, asker = replace(CASE, filler="Grass."), asker_of(writer, none, asked, form)
        return reader.decode(asker.swapped(case, exchange, distance).ids)

    ask, text, chat = "Question: What is the code?\n", SwapForm.TEXT, SwapForm.CHAT
    assert shown(text, AskedWhen.BEHIND) == f"Grass. G\n\n{ask}Answer:"
    assert shown(text, AskedWhen.BEFORE) == f"{ask}\nGrass. G\n\nAnswer:"
    assert shown(text, AskedWhen.BEFORE, distance=0) == f"{ask}Answer:"
    assert shown(text, AskedWhen.TWICE) == f"{ask}\nGrass. G\n\n{ask}Answer:"
    assert shown(text, AskedWhen.ANSWERED) == f"{ask}Answer: 17\n\nGrass. G\n\n{ask}Answer:"
    unknown = shown(text, AskedWhen.ANSWERED, Exchange(UNRELATED, GOLD))
    assert unknown.startswith(f"{ask}Answer: I do not know.\n\n")
    assert "First, please tell me something else." in shown(chat, AskedWhen.BEHIND)
    assert shown(chat, AskedWhen.BEFORE).endswith("Grass. G\n\nThe answer is:")
    assert shown(chat, AskedWhen.TWICE).count("What is the code?") == 2
    assert "17\n\nGrass. G" in shown(chat, AskedWhen.ANSWERED)


def test_the_text_between_has_the_distances_tokens_and_begins_anywhere(reader: Reader) -> None:
    asker = asker_of(writer_of(reader), SwapRow("none"))
    found = {
        reader.decode(asker.swapped(replace(CASE, id=n), SWAP, 12).ids[1:13]) for n in range(20)
    }
    assert found == {"Grass grows.", "Wind blows h", "Water runs d"}
    long = asker.swapped(CASE, SWAP, 300)
    assert len(long.ids) == 300 + len(asker.swapped(CASE, SWAP, 12).ids) - 12


def test_rows_and_forms(reader: Reader) -> None:
    again = SwapSettings(recompute_tokens="all, 0,16,1").recomputed
    assert again == (0, 1, 16, None)
    rows = swap_rows(["none", "slot"], again, SwapForm.CHAT)
    names = ["prepend", "none", "slot, e = 16", "slot, e = 1", "slot, e = all"]
    assert [row.name for row in rows] == names
    rows = swap_rows(["slot", "prepend"], (0,), SwapForm.TEXT)
    assert [row.name for row in rows] == ["prepend", "slot, e = 64"]
    assert settled_swap_form("auto", reader) is SwapForm.CHAT
    assert settled_swap_form("auto", tiny_reader()) is SwapForm.TEXT
    with pytest.raises(SettingsError, match="has no chat template"):
        settled_swap_form("chat", tiny_reader())


@pytest.mark.parametrize(
    ("name", "wanted", "rival"),
    [
        ("gold-counterfactual", OTHER, GOLD),
        ("counterfactual-gold", GOLD, OTHER),
        ("unrelated-gold", GOLD, OTHER),
        ("gold-unrelated", OTHER, GOLD),
    ],
)
def test_whose_answer_is_right(name: str, wanted: Variant, rival: Variant) -> None:
    exchange = Exchange.named(name)
    assert (exchange.wanted, exchange.rival) == (wanted, rival)


@pytest.mark.parametrize(
    "wrong",
    [
        {"distance": "0"},
        {"distance": ""},
        {"distance": "8,-1"},
        {"distance": "8;9"},
        {"recompute_tokens": "some"},
        {"recompute_tokens": "1,,all"},
        {"recompute_tokens": "9" * 9},
    ],
)
def test_settings_that_are_refused(wrong: dict[str, Any]) -> None:
    settings = SwapSettings(**wrong)
    with pytest.raises(SettingsError, match="expected"):
        _ = settings.distances, settings.recomputed


def test_a_case_that_does_not_fit_is_named(reader: Reader) -> None:
    asker = asker_of(writer_of(reader), SwapRow("prepend"))
    swaps = Swaps((asker,), (CASE,), (SWAP,), (900,), asker.writer)
    with pytest.raises(PromptTooLong, match="case 'c', prepend: the prompt has"):
        swaps.check()


def test_an_answer_without_a_token_is_refused_with_its_case() -> None:
    asker = asker_of(writer_of(deaf_reader("45 ", window=640)), SwapRow("none"))
    swaps = Swaps((asker,), (CASE,), (SWAP,), (8,), asker.writer)
    with pytest.raises(PromptsError, match="case 'c': the answer '45' has no tokens"):
        swaps.check()


def test_prompts_that_rows_share_are_computed_once(reader: Reader) -> None:
    writer = writer_of(reader)
    engine = Forcing(writer.engine, [])
    writer.engine = engine
    askers = tuple(asker_of(writer, row) for row in (*KEEPING, *SLOTS[:2]))
    exchanges = tuple(map(Exchange.named, ("counterfactual-gold", "unrelated-gold")))
    swaps = Swaps(askers, (CASE,), exchanges, (40,), writer)
    records = swaps.run(InMemory(), lambda _: lambda: None)
    assert len(records) == 12
    different = 4 + 2 * 2  # what keeps nothing once, and every e with either passage
    assert len(set(engine.prompts)) == different
    assert len(engine.prompts) == 3 * different  # two answers, and what is written


def record(row: str, **more: float) -> dict[str, Any]:
    zero = ("exact_match", "substring", "old_written", "old_wins", "stale_tokens")
    own = dict.fromkeys(zero, 0.0) | {"nats": 1.0, "answer_tokens": 1}
    own |= {"old_nats": 4.0, "old_answer_tokens": 2}
    place = {"row": row, "distance": 8, "exchange": "a -> b", "kind": "k"}
    return {**own, **place, **more}


def test_figures_are_means_and_differences_are_paired() -> None:
    records = [
        one
        for nats in (1.0, 5.0, 3.0)
        for one in (
            record("prepend", nats=nats, answer_tokens=2),
            record("slot", nats=nats + 1, answer_tokens=2, old_wins=100.0),
        )
    ]
    (table,) = SwapTable(records, 100, {"x": 1}).record()["tables"]
    assert (table["distance"], table["exchange"], table["kind"]) == (8, "a -> b", "k")
    assert table["cases"] == 3
    prepend, slot = table["rows"]
    assert prepend["nats_per_token"]["value"] == 1.5
    assert prepend["nats_per_token"]["low"] < 1.5 < prepend["nats_per_token"]["high"]
    assert slot["against_prepend"]["nats_per_token"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert slot["old_wins"] == {"value": 100, "low": 100, "high": 100}
    assert slot["old_nats_per_token"]["value"] == 2
