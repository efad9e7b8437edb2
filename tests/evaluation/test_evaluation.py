"""Perplexities are what plain transformers says, their intervals cover, and nothing is redone."""

import dataclasses
import gc
import itertools
import json
import math
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from families import tiny_model
from flashback.corpus.documents import Document
from flashback.engines.local import LocalEngine
from flashback.errors import AdapterError, TrainingError
from flashback.evaluation import perplexity
from flashback.evaluation.adapted_readers import AdaptedReaders
from flashback.evaluation.arms import (
    Arm,
    adapter_arms,
    untrained_arms,
    usual_frames,
    with_unique_names,
)
from flashback.evaluation.bootstrap_settings import BootstrapSettings
from flashback.evaluation.evaluate import EvaluationSet, ScoreStore, evaluate, examples_digest
from flashback.evaluation.frame_kind import FrameKind
from flashback.evaluation.markdown import figure, in_markdown, ratio_figure, summary_of
from flashback.evaluation.perplexity import (
    Contamination,
    Table,
    TableRow,
    Texts,
    contamination,
    row_of,
    texts_of,
)
from flashback.evaluation.report import plot_sweep, plot_table, write_documents
from flashback.evaluation.statistics import Array, Bootstrap, Interval
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.readers.adapter import add_marks
from flashback.readers.card import WEIGHTS, read_card
from flashback.readers.lora_settings import Marks
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit
from flashback.scoring.control_kind import Control
from flashback.scoring.examples import Example
from flashback.scoring.retrieved_windows import cut_and_retrieve
from flashback.scoring.targets import TargetScorer
from flashback.scoring.window_settings import Protocol, WindowSettings
from flashback.scoring.windows import Cut, Window
from flashback.settings import RetrievalSettings, SearchOptions
from flashback.training.reproduce import train_missing
from flashback.training.run import Run
from flashback.training.train import train
from flashback.training.trainer import OnStep
from flashback.training.training_settings import TrainingSettings
from recompute import cached_scores
from tiny_readers import MadeUpRetriever, byte_tokenizer, tiny_reader

TOLERANCE = 1e-4
"""Nats per target."""
WINDOWS = WindowSettings(window_tokens=80, first_boundary=16)
RETRIEVAL = RetrievalSettings(stride=8, query_tokens=22, passage_tokens=24, passages=2)
COARSE = dataclasses.replace(RETRIEVAL, stride=16)
FEW = BootstrapSettings(resamples=50)
NONE = Arm("none")
PAPER = ("none", "prepend", "append")
"""The slot's scores are compared with a block mask's in test_packing.py."""


def documents(count: int = 3) -> list[Document]:
    """Of two to three windows, with characters of several bytes."""
    texts = ["".join(f"wörd{i * j}, 雪 {'abc'[j % 3]} " for j in range(14)) for i in range(1, 9)]
    return [Document(f"d{i}", f"T{i}", text) for i, text in enumerate(texts[:count])]


@cache
def made_up(
    settings: RetrievalSettings = RETRIEVAL,
    windows: WindowSettings = WINDOWS,
    *,
    seed: int = 0,
    count: int = 3,
) -> EvaluationSet:
    """Windows of the documents with made-up passages, some of them empty."""
    reader = tiny_reader()
    retriever = MadeUpRetriever(seed)
    (prepared,) = cut_and_retrieve(documents(count), reader, retriever, [settings], windows)
    return EvaluationSet(tuple(prepared.examples(reader, settings)), prepared.found, windows)


def load() -> Reader:
    return tiny_reader()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three adapters, trained hard enough to change everything."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, pattern, marks, echo) in enumerate(
        [
            ("marks", "append", Marks.TRAINED, 5),
            ("bare", "prepend", Marks.NONE, 3),
            ("other", "append", Marks.TRAINED, 5),
        ]
    ):
        settings = TrainingSettings(
            marks, echo, learning_rate=0.05, steps=2, windows_per_step=1, seed=seed
        )
        run = Run(settings, dataclasses.replace(RETRIEVAL, pattern=pattern), WINDOWS)
        train(load(), made_up().examples, run, folder / name)
    return folder


# Perplexities


def shown(arm: Arm, window: Window, cut: Cut, passage: Ids, reader: Reader) -> Ids:
    """What an arm's reader is shown before a cut's targets: from the definitions alone."""
    text = window.ids[max(cut.start, window.bos) : cut.boundary]
    before: Ids = ()
    after: Ids = ()
    echo = arm.echo_tokens
    if arm.marks is not Marks.NONE:
        assert reader.marks is not None
        before, after = (reader.marks[0],), (reader.marks[1],)
    elif arm.adapter is None and arm.frame is FrameKind.EOS:
        before = (1,)
    elif arm.adapter is None and arm.frame in (FrameKind.TEXT, FrameKind.ECHO):
        texts = {"append": (" [Reference: ", "]\n\n")}.get(arm.pattern, ("Reference: ", "\n\n"))
        before, after = (tuple(reader.encode(text)) for text in texts)
        echo = 16 if arm.frame is FrameKind.ECHO else 0
    framed = (*before, *passage, *after) if passage else ()
    front = window.ids[: window.bos]
    if arm.pattern == "prepend":
        return front + framed + text
    if arm.pattern == "append":
        return front + text + framed + (text[-echo:] if framed and echo else ())
    return front + text


@torch.no_grad()
def separately(arm: Arm, judged: EvaluationSet, reader: Reader, model: Any) -> list[float]:
    """The reference: nats of every window, each stride in a plain pass of its own."""
    found = []
    for example in arm.examples(judged.examples, judged.windows):
        window, nats = example.window, 0.0
        for cut, passage in zip(window.cuts, example.passages, strict=True):
            targets = window.targets(cut)
            prompt = shown(arm, window, cut, passage, reader)
            logits = model(input_ids=torch.tensor([prompt + targets[:-1]])).logits[0].double()
            logits[:, list(reader.forbidden)] = -torch.inf
            chances = logits[-len(targets) :].log_softmax(-1)
            nats -= float(chances[range(len(targets)), list(targets)].sum())
        found.append(nats)
    return found


def check_row(row: TableRow, table: Table, expected: Sequence[float]) -> None:
    """A row's figures, from the nats of every window."""
    texts = table.texts
    of_documents = np.bincount(texts.of_window, weights=expected)
    assert np.abs((row.nats - of_documents) / texts.tokens).max() <= TOLERANCE
    mean = sum(expected) / texts.tokens.sum()
    assert abs(math.log(row.perplexity.value) - mean) <= TOLERANCE
    assert row.perplexity.low <= row.perplexity.value <= row.perplexity.high


UNTRAINED = [
    NONE,
    Arm("none", shortened=True),
    *untrained_arms(
        ["prepend", "append"],
        [FrameKind.BARE, FrameKind.TEXT, FrameKind.ECHO, FrameKind.EOS],
    ),
]


@pytest.mark.parametrize("protocol", Protocol)
def test_rows_equal_plain_transformers(protocol: Protocol) -> None:
    judged = made_up(windows=dataclasses.replace(WINDOWS, protocol=protocol))
    (table,) = evaluate(UNTRAINED, [judged], AdaptedReaders(load), settings=FEW)
    reader = load()
    assert [row.arm for row in table.rows] == UNTRAINED
    assert len(UNTRAINED) == 9
    for row in table.rows:
        check_row(row, table, separately(row.arm, judged, reader, reader.model))
    values = [row.perplexity.value for row in table.rows]
    if protocol is not Protocol.WINDOWS:  # where contexts are short already, cutting may do nothing
        values.pop(1)
    assert min(abs(a - b) for a, b in itertools.combinations(values, 2)) > 1e-3


def test_a_shortened_context_is_the_end_of_the_whole_one() -> None:
    judged = made_up()
    arm = Arm("none", shortened=True)
    shorter = 0
    for short, whole in zip(
        arm.examples(judged.examples, judged.windows), judged.examples, strict=True
    ):
        for cut, other in zip(short.window.cuts, whole.window.cuts, strict=True):
            kept, given = short.window.context(cut), whole.window.context(other)
            assert kept[:1] == (0,)
            assert kept[1:] == given[1:][len(given) - len(kept) :]
            shorter += len(kept) < len(given)
    assert shorter > 0


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's
def test_rows_with_adapters_equal_plain_transformers_with_peft(adapters: Path) -> None:
    """The reference keeps the adapter beside the weights; rows have it merged into them."""
    judged = made_up()
    arms = [NONE, *adapter_arms(adapters / "marks", PAPER)]
    arms += adapter_arms(adapters / "bare", ["prepend", "append"])
    (table,) = evaluate(arms, [judged], AdaptedReaders(load), settings=FEW)
    for row in table.rows[1:]:
        assert row.arm.adapter is not None
        reader = load()
        if row.arm.marks is not Marks.NONE:
            add_marks(reader.tokenizer, reader.model)
        model = PeftModel.from_pretrained(reader.model, str(row.arm.adapter)).eval()
        check_row(row, table, separately(row.arm, judged, reader, model))
    values = [row.perplexity.value for row in table.rows]
    assert min(abs(a - b) for a, b in itertools.combinations(values, 2)) > 0.1


@pytest.mark.parametrize(
    "arm", [NONE, Arm("append", FrameKind.TEXT), Arm("append", FrameKind.ECHO)]
)
@pytest.mark.parametrize("family", ["opt", "mistral"])
def test_rows_equal_scoring_step_by_step(arm: Arm, family: str) -> None:
    """What the engine that writes says of the same prompts, one after another through its cache."""
    judged = made_up(count=1)
    (table,) = evaluate([arm], [judged], AdaptedReaders(lambda: tiny_reader(family)), settings=FEW)
    reader = tiny_reader(family)
    engine = LocalEngine(reader.model, reader.window)
    stepped = []
    for example in judged.examples:
        window = example.window
        nats = 0.0
        for cut, passage in zip(window.cuts, example.passages, strict=True):
            prompt = shown(arm, window, cut, passage, reader)
            nats -= sum(cached_scores(engine, prompt + window.targets(cut), len(prompt)))
        stepped.append(nats)
    check_row(table.rows[0], table, stepped)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[Example]]]:
    """What is scored from now on: the pattern and what it was scored on."""
    calls: list[tuple[str, list[Example]]] = []

    def score(model: Any, examples: list[Example], arrangement: Any) -> Iterator[float]:
        calls.append((arrangement.pattern, examples))
        return perplexity.score(model, examples, arrangement)

    monkeypatch.setattr("flashback.evaluation.evaluate.score", score)
    return calls


def test_all_arms_see_the_same_targets_contexts_and_passages(
    scored: list[tuple[str, list[Example]]], adapters: Path
) -> None:
    judged = made_up()
    arms = [*UNTRAINED, *adapter_arms(adapters / "marks", list(PATTERNS))]
    evaluate(arms, [judged], AdaptedReaders(load), settings=FEW)
    assert len(scored) == len(arms)
    shortened = 0
    for _, examples in scored:
        for example, given in zip(examples, judged.examples, strict=True):
            one, other = example.window, given.window
            assert example.passages == given.passages
            pairs = list(zip(one.cuts, other.cuts, strict=True))
            assert all(one.targets(a) == other.targets(b) for a, b in pairs)
            shortened += any(one.context(a) != other.context(b) for a, b in pairs)
    assert 0 < shortened <= len(judged.examples)  # those of the one arm whose contexts are cut


# Words and bytes


def one_window(text: str, first: int, end: int, reader: Reader, name: str = "d") -> Example:
    """A text whose tokens in [first, end) are the targets."""
    ids = (*reader.bos, *reader.encode(text))
    cut = (Cut(first),)
    window = Window(Document(name, name, text), ids, len(reader.bos), cut, end - first)
    return Example(window, ((),))


#   <s> a b _ c d _ é é 雪 雪 雪 _ f g    a token for every byte
TEXT = "ab cd é雪 fg"


@pytest.mark.parametrize(
    ("first", "end", "words", "size"),
    [
        (1, 15, 4, 14),
        (4, 12, 2, 8),
        (5, 12, 1, 7),  # within a word, which began before
        (3, 7, 1, 4),
        (8, 12, 0, 5),  # within a character, which ends within the targets
        (4, 8, 2, 3),  # its first byte is a word's beginning, but no character
        (10, 11, 0, 0),
        (12, 15, 1, 3),
    ],
)
def test_words_that_begin_and_characters_that_end_in_targets_count(
    first: int, end: int, words: int, size: int
) -> None:
    reader = tiny_reader()
    texts = texts_of([one_window(TEXT, first, end, reader)], reader)
    assert (texts.tokens[0], texts.words[0], texts.bytes[0]) == (end - first, words, size)


def test_neighbouring_targets_count_every_word_and_byte_once() -> None:
    reader = tiny_reader()
    for middle in range(2, 15):
        parts = [one_window(TEXT, *span, reader) for span in ((1, middle), (middle, 15))]
        texts = texts_of(parts, reader)
        assert (texts.words[0], texts.bytes[0]) == (4, len(TEXT.encode()))


def test_a_tokenizer_that_decodes_no_leading_space_loses_no_byte() -> None:
    """As SentencePiece does: the targets' own text would begin without their first space."""
    words = ["</s>", "▁ab", "▁cd", "▁é"]
    vocabulary = models.WordLevel({word: i for i, word in enumerate(words)}, "</s>")
    tokenizer = Tokenizer(vocabulary)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    reader = dataclasses.replace(tiny_reader(), tokenizer=fast)
    assert reader.encode("ab cd é") == [1, 2, 3]
    assert reader.decode([2, 3]) == "cd é"
    texts = texts_of([one_window("ab cd é", 1, 3, reader)], reader)
    assert (texts.words[0], texts.bytes[0]) == (2, len(" cd é".encode()))


def test_word_perplexity_and_bits_per_byte_are_of_the_total() -> None:
    reader = tiny_reader()
    examples = [one_window(TEXT, 4, 12, reader, "d"), one_window("a b c é", 1, 9, reader, "e")]
    texts = texts_of(examples, reader)
    nats = np.array([10.0, 4.0])
    row = row_of(NONE, nats, texts, Bootstrap(2, 20))
    assert row.word_perplexity == pytest.approx(math.exp(14 / (2 + 4)))
    assert row.bits_per_byte == pytest.approx(14 / math.log(2) / (8 + 8))
    assert row.perplexity.value == pytest.approx(math.exp(14 / 16))


def test_texts_without_words_or_whole_characters_have_no_such_figures() -> None:
    reader = tiny_reader()
    texts = texts_of([one_window(TEXT, 10, 11, reader)], reader)
    row = row_of(NONE, np.array([3.0]), texts, Bootstrap(1, 20))
    assert (row.word_perplexity, row.bits_per_byte) == (None, None)
    record = table_of([row], texts).record()
    assert json.loads(json.dumps(record))["rows"][0]["word_perplexity"] is None
    assert "| - | - |" in in_markdown(record, "x")


def test_figures_beyond_all_numbers_are_finite() -> None:
    reader = tiny_reader()
    texts = texts_of([one_window(TEXT, 4, 12, reader)], reader)
    row = row_of(NONE, np.array([1e6]), texts, Bootstrap(1, 20))
    assert row.word_perplexity is not None
    assert row.word_perplexity == row.perplexity.high == math.exp(700)
    json.loads(json.dumps(table_of([row], texts).record(), allow_nan=False))


# Intervals


def simulated(generator: np.random.Generator, documents: int) -> tuple[Array, Array]:
    """Nats and targets of documents whose rate, 2, differs from document to document."""
    units = generator.integers(50, 500, documents).astype(np.float64)
    rates = generator.gamma(4.0, 0.5, documents)
    return rates * units, units


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(7)
    bootstrap = Bootstrap(80, 400)
    found = [bootstrap.exponential(*simulated(generator, 80)) for _ in range(600)]
    covered = sum(one.low <= math.exp(2) <= one.high for one in found)
    assert 0.91 <= covered / 600 <= 0.98
    below = sum(one.high < math.exp(2) for one in found)
    assert 0.004 <= below / 600 <= 0.07  # and misses on both sides


def test_an_interval_by_hand() -> None:
    """Of two documents, a quarter of all resamples is the one twice, and a quarter the other."""
    nats, units = np.array([3.0, 8.0]), np.array([1.0, 2.0])
    found = Bootstrap(2, 1000).exponential(nats, units)
    assert found.value == pytest.approx(math.exp(11 / 3))
    assert (found.low, found.high) == pytest.approx((math.exp(3), math.exp(4)))


def test_intervals_are_the_same_every_time_and_others_for_other_seeds() -> None:
    sums = simulated(np.random.default_rng(0), 30)
    first, again, other = (Bootstrap(30, 200, seed).exponential(*sums) for seed in (0, 0, 1))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert first.value == other.value


def test_resamples_are_those_of_one_draw() -> None:
    """They are made some at a time, and kept small."""
    documents, resamples = 30, 200
    nats, units = simulated(np.random.default_rng(0), documents)
    times = np.random.default_rng(7).multinomial(
        documents, np.full(documents, 1 / documents), size=resamples
    )
    ratios = np.exp((times @ nats) / (times @ units))
    found = Bootstrap(documents, resamples, 7).exponential(nats, units)
    logs = np.quantile(np.log(ratios), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(logs)))


def test_documents_of_several_files_may_have_the_same_ids() -> None:
    examples = made_up().examples[:2]
    one, other = (
        dataclasses.replace(
            example,
            window=dataclasses.replace(example.window, document=Document("0", title, "")),
        )
        for example, title in zip(examples, ("a", "b"), strict=True)
    )
    texts = texts_of([one, other, one], tiny_reader())
    assert (texts.ids, texts.titles, texts.of_window) == (("0", "0"), ("a", "b"), (0, 1, 0))


def test_ratios_are_paired() -> None:
    generator = np.random.default_rng(1)
    nats, units = simulated(generator, 50)
    better = nats * 0.9 + generator.normal(0, 1, 50)
    bootstrap = Bootstrap(50, 500)
    same = bootstrap.ratio(nats, nats, units)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    ratio = bootstrap.ratio(better, nats, units)
    first, second = bootstrap.exponential(better, units), bootstrap.exponential(nats, units)
    assert ratio.value == pytest.approx(first.value / second.value)
    assert first.high > second.low  # apart, they would tell nothing
    assert ratio.high < 1
    assert ratio.high - ratio.low < 0.2 * (first.high / second.low - first.low / second.high)


# Passages too close to the document


class Scripted:
    """A retriever that answers query after query what it was told, whatever is forbidden."""

    def __init__(self, answers: Sequence[list[Hit]]) -> None:
        self._answers = iter(answers)

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [next(self._answers)[: options.k] for _ in queries]


def hit(text: str, document: str = "elsewhere") -> Hit:
    return Hit("p", document, "t", text, 1.0)


def test_what_comes_close_to_the_document_is_counted() -> None:
    words = [f"w{number}" for number in range(20)]
    other = "other words that stand nowhere in it at all, twice or more often than that"
    document = Document("own", "T", " ".join(words))
    copy, close = hit(" ".join(words[:12])), hit(f"{' '.join(words[3:11])} {other}")
    far = hit(other)
    answers = [
        [],
        [far],
        [far, close],  # only the first counts
        [close],
        [copy, copy, far],
        [copy],  # nothing is left
        [hit(other, "own")],
    ]
    reader = tiny_reader()
    settings = RetrievalSettings("append", stride=4, passages=2)
    windows = WindowSettings(window_tokens=16 + 4 * len(answers), first_boundary=16)
    (prepared,) = cut_and_retrieve(
        [dataclasses.replace(document, text=document.text[: 15 + 4 * len(answers)])],
        reader,
        Scripted(answers),
        [settings],
        windows,
    )
    found = prepared.found
    shorter = Document("own", "T", document.text[: 15 + 4 * len(answers)])
    assert prepared.windows[0].document == shorter
    counted = contamination(prepared.examples(reader, settings), found)
    assert counted == Contamination(
        cuts=7, empty=2, from_document=1, overlapping=1, copies_left_out=3
    )


# Tables


def table_of(rows: Sequence[TableRow], texts: Texts) -> Table:
    close = Contamination(2, 0, 0, 0, 0)
    return Table(tuple(rows), texts, Bootstrap(len(texts.ids), 20), close, {"model": "m"})


@pytest.fixture(scope="module")
def table(adapters: Path) -> Table:
    arms = [NONE, *untrained_arms(["append"], [FrameKind.ECHO])]
    arms += adapter_arms(adapters / "marks", ["append"])
    judged = dataclasses.replace(made_up(), settings={"model": "tiny", "stride": 8})
    return evaluate(arms, [judged], AdaptedReaders(load), settings=FEW)[0]


def test_document_records_sum_to_the_rows(table: Table) -> None:
    record, records = table.record(), list(table.document_records())
    assert [one["id"] for one in records] == ["d0", "d1", "d2"]
    assert [one["title"] for one in records] == ["T0", "T1", "T2"]
    assert len(table.texts.of_window) > len(records)
    totals = {name: sum(one[name] for one in records) for name in ("tokens", "words", "bytes")}
    assert record["tokens"] == totals["tokens"] > 0
    assert record["documents"] == len(records)
    for row in record["rows"]:
        nats = sum(one["nats"][row["name"]] for one in records)
        assert row["perplexity"] == pytest.approx(math.exp(nats / totals["tokens"]))
        assert row["word_perplexity"] == pytest.approx(math.exp(nats / totals["words"]))
        assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / totals["bytes"])
        assert row["tokens"] == totals["tokens"]


def test_a_record_says_what_each_row_is(table: Table, adapters: Path) -> None:
    record = table.record()
    keys = ("name", "pattern", "training", "marks", "frame", "adapter", "trained_for", "context")
    adapter = str(adapters / "marks")
    assert [tuple(row[key] for key in keys) for row in record["rows"]] == [
        ("none", "none", "none", "none", "bare", None, None, "full"),
        ("append (text, echo)", "append", "none", "none", "text, echo", None, None, "full"),
        (
            *("append + LoRA, trained marks, echo", "append", "lora", "trained", "marks"),
            *(adapter, "append", "full"),
        ),
    ]
    assert record["rows"][0]["against_first_row"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    json.loads(json.dumps(record, allow_nan=False))


def test_documents_are_written_for_every_table(table: Table, tmp_path: Path) -> None:
    write_documents([table, table], tmp_path / "documents.jsonl")
    lines = (tmp_path / "documents.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 2 * 3
    first = {"settings": {"model": "tiny", "stride": 8}, **next(iter(table.document_records()))}
    assert json.loads(lines[0]) == json.loads(lines[3]) == first


def test_a_table_in_markdown_has_every_row(table: Table) -> None:
    page = in_markdown(table.record(), "tiny | model")
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in rows] == [
        row.arm.name for row in table.rows
    ]
    assert {line.count("|") for line in rows} == {7}
    assert page.startswith("# tiny | model\n")
    assert "- stride: 8\n" in page
    assert f"{int(table.texts.tokens.sum()):,} targets of 3 documents" in page


def test_names_do_not_break_a_table_in_markdown(table: Table) -> None:
    row = dataclasses.replace(table.rows[0], arm=Arm("none", label="a|b"))
    assert r"| none (a\|b) |" in in_markdown(table_of([row], table.texts).record(), "x")


def test_the_summary_says_what_applies() -> None:
    reader = tiny_reader()
    texts = texts_of([one_window(TEXT, 4, 12, reader)], reader)
    row = row_of(NONE, np.array([3.0]), texts, Bootstrap(1, 20))
    text = summary_of(table_of([row], texts).record())
    assert text == "8 targets of 1 documents; one document gives no interval."
    appended = dataclasses.replace(row, arm=Arm("append"))
    assert "First passages: 0.0 % none" in summary_of(table_of([appended], texts).record())


@pytest.mark.parametrize(
    ("value", "perplexity", "ratio"),
    [
        (0.9871, "0.99", "0.987"),
        (13.026, "13.03", "13.03"),
        (113.26, "113.3", "113.3"),
        (1134.6, "1135", "1135"),
        (31134.6, "31135", "31135"),
        (1.25e15, "1.2e+15", "1.2e+15"),
        (None, "-", "-"),
    ],
)
def test_figures_have_about_four_digits(value: float | None, perplexity: str, ratio: str) -> None:
    assert (figure(value), ratio_figure(value)) == (perplexity, ratio)


def test_figures_are_drawn_even_where_rounding_moves_an_interval(
    table: Table, tmp_path: Path
) -> None:
    beside = Interval(2.0, 2.0 + 1e-12, 2.0 + 2e-12)
    rows = tuple(dataclasses.replace(row, perplexity=beside) for row in table.rows)
    moved = dataclasses.replace(table, rows=rows)
    plot_table(moved, "x", tmp_path / "table.svg")
    plot_sweep([table, moved], ["s=4", "s=8"], "x", tmp_path / "sweep.png")
    assert "append (text, echo)" in (tmp_path / "table.svg").read_text("utf-8")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


# Arms


def all_arms(adapters: Path) -> Iterator[Arm]:
    yield from UNTRAINED
    yield from untrained_arms(list(PATTERNS), [FrameKind.MARKS])[1:]
    for name in ("marks", "bare"):
        yield from adapter_arms(adapters / name, list(PATTERNS))


def test_names_tell_arms_apart_and_stay_the_same(adapters: Path) -> None:
    arms = list(all_arms(adapters))
    assert [arm.name for arm in arms] == [
        "none",
        "none (shortened)",
        "prepend (bare)",
        "prepend (text)",
        "prepend (eos)",
        "append (bare)",
        "append (text)",
        "append (text, echo)",
        "append (eos)",
        "prepend (marks)",
        "append (marks)",
        "slot (marks)",
        "none + append LoRA, trained marks, echo",
        "prepend + append LoRA, trained marks, echo",
        "append + LoRA, trained marks, echo",
        "slot + append LoRA, trained marks, echo",
        "none + prepend LoRA",
        "prepend + LoRA",
        "append + prepend LoRA, echo",
        "slot + prepend LoRA",
    ]
    assert with_unique_names(arms) == arms


def test_names_tell_every_kind_of_adapter_apart() -> None:
    arms = [
        Arm(pattern, FrameKind.MARKS, Path("a"), marks, echo, trained_for)
        for pattern, marks, echo, trained_for in itertools.product(
            ("prepend", "append"), Marks, (0, 4), ("prepend", "append")
        )
        if echo == 0 or "append" in (pattern, trained_for)
    ]
    assert len({arm.name for arm in arms}) == len(arms)


def test_adapters_of_one_kind_are_named_by_their_folders(adapters: Path) -> None:
    alike = adapter_arms(adapters / "marks", ["append"])
    alike += adapter_arms(adapters / "other", ["append"])
    names = [arm.name for arm in with_unique_names([NONE, *alike, *alike])]
    assert names == [
        "none",
        *(f"append + LoRA, trained marks, echo ({x})" for x in ("marks", "other")),
    ]
    elsewhere = [dataclasses.replace(alike[0], adapter=Path(x, "run")) for x in "ab"]
    assert [arm.name.partition("(")[2] for arm in with_unique_names(elsewhere)] == [
        "a/run)",
        "b/run)",
    ]


def test_an_untrained_reader_is_shown_what_generating_shows() -> None:
    arms = untrained_arms(["append"], usual_frames(tiny_reader()))
    reader = tiny_reader()
    assert arms[-1].arrangement(reader).frame == reader.frame(None, "append")
    marked = tiny_reader(marks=True)
    (arm,) = untrained_arms(["append"], usual_frames(marked))
    assert arm.arrangement(marked).frame == marked.frame(None, "append")
    assert arm.arrangement(marked).forbidden == marked.marks


def test_the_tokens_around_a_passage_are_known_before_adapters_are_loaded(adapters: Path) -> None:
    plain, readers = load(), AdaptedReaders(load)
    for arm in all_arms(adapters):
        if arm.frame is FrameKind.MARKS and arm.adapter is None:
            continue
        frame = arm.arrangement(readers.get(arm.adapter)).frame
        assert arm.frame_tokens(plain) == (len(frame) if PATTERNS[arm.pattern].retrieves else 0)


# What was scored before


Calls = list[tuple[str, list[Example]]]


def run_again(store: ScoreStore, scored: Calls, **changed: Any) -> list[str]:
    """Evaluate; the patterns that were scored, not taken from the store."""
    given: dict[str, Any] = {
        "arms": [NONE, Arm("append", FrameKind.TEXT)],
        "sets": [made_up(count=1)],
        "readers": AdaptedReaders(load),
    } | changed
    scored.clear()
    evaluate(**given, store=store, settings=FEW)
    return [pattern for pattern, _ in scored]


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    return ScoreStore(tmp_path / "scores")


def test_finished_arms_are_not_scored_again(store: ScoreStore, scored: Calls) -> None:
    assert run_again(store, scored) == ["none", "append"]
    assert run_again(store, scored) == []
    more = [NONE, Arm("prepend"), Arm("append", FrameKind.TEXT)]
    assert run_again(store, scored, arms=more) == ["prepend"]


def test_kept_rows_equal_scored_ones(store: ScoreStore) -> None:
    arms, judged = [NONE, Arm("append")], [made_up()]
    tables = [
        evaluate(arms, judged, AdaptedReaders(load), settings=FEW, store=store)[0] for _ in range(2)
    ]
    assert tables[0].record() == tables[1].record()


def test_a_row_goes_on_behind_the_windows_that_were_scored(
    store: ScoreStore, scored: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = made_up(count=8)
    count = len(judged.examples)
    assert count > 2 * perplexity.TOGETHER
    (whole,) = evaluate([NONE], [judged], AdaptedReaders(load), settings=FEW)
    counting = itertools.count(1)
    steps = TargetScorer.log_probs

    def interrupted(*given: Any) -> Any:
        if next(counting) == 3:
            raise KeyboardInterrupt
        return steps(*given)

    with monkeypatch.context() as patch:
        patch.setattr(TargetScorer, "log_probs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_again(store, scored, arms=[NONE], sets=[judged])
    assert run_again(store, scored, arms=[NONE], sets=[judged]) == ["none"]
    ((_, rest),) = scored
    assert len(rest) == count - 2 * perplexity.TOGETHER
    assert run_again(store, scored, arms=[NONE], sets=[judged]) == []
    (again,) = evaluate([NONE], [judged], AdaptedReaders(load), settings=FEW, store=store)
    assert again.record() == whole.record()


def test_a_control_is_another_row_on_the_same_targets(store: ScoreStore, scored: Calls) -> None:
    found = made_up()
    turned = tuple(
        dataclasses.replace(one, passages=(*one.passages[1:], one.passages[0]))
        for one in found.examples
    )
    judged = dataclasses.replace(found, controls={Control.ORACLE: turned})
    arms = [NONE, Arm("append"), Arm("append", control=Control.ORACLE)]
    (table,) = evaluate(arms, [judged], AdaptedReaders(load), settings=FEW, store=store)
    assert [row.arm.name for row in table.rows[1:]] == [
        "append (bare)",
        "append (bare, oracle passages)",
    ]
    assert [row["passages"] for row in table.record()["rows"]] == ["found", "found", "oracle"]
    shown = dataclasses.replace(found, examples=turned)
    (alone,) = evaluate(arms[:2], [shown], AdaptedReaders(load), settings=FEW)
    assert table.rows[2].nats.tolist() == alone.rows[1].nats.tolist()
    assert table.rows[2].nats.tolist() != table.rows[1].nats.tolist()


def other_model() -> Reader:
    return tiny_reader(model=tiny_model("llama", seed=1))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (lambda: {"sets": [made_up(seed=1, count=1)]}, ["append"]),
        (lambda: {"sets": [made_up(count=2)]}, ["none", "append"]),
        (lambda: {"sets": [made_up(COARSE, count=1)]}, ["none", "append"]),
        (lambda: {"readers": AdaptedReaders(other_model)}, ["none", "append"]),
        (lambda: {"arms": [NONE, Arm("append", FrameKind.BARE)]}, ["append"]),
    ],
)
def test_what_has_changed_is_scored_again(
    changed: Callable[[], dict[str, Any]], expected: list[str], store: ScoreStore, scored: Calls
) -> None:
    run_again(store, scored)
    assert run_again(store, scored, **changed()) == expected


def test_everything_that_decides_a_score_changes_its_identity() -> None:
    (example,) = made_up(count=1).examples[:1]
    window = example.window
    cuts = (*window.cuts[:-1], dataclasses.replace(window.cuts[-1], start=3))
    others = [
        dataclasses.replace(window, ids=(*window.ids[:-1], 7)),
        dataclasses.replace(window, cuts=cuts),
        dataclasses.replace(window, cuts=window.cuts[:-1]),
        dataclasses.replace(window, cuts=window.cuts[::2], stride=16),
        dataclasses.replace(window, cuts=window.cuts[::2]),
        dataclasses.replace(window, document=Document("other", "", "")),  # contexts are drawn by it
    ]
    examples = [example, *(dataclasses.replace(example, window=other) for other in others)]
    examples.append(dataclasses.replace(example, passages=((5,), *example.passages[1:])))
    seeds = [dataclasses.replace(WINDOWS, seed=seed) for seed in (0, 1)]
    identities = [examples_digest([one], windows) for one in examples for windows in seeds]
    identities.append(examples_digest([example, example], WINDOWS))
    assert len(set(identities)) == len(identities)
    unseen = [examples_digest([examples[at]], WINDOWS, passages=False) for at in (0, -1)]
    assert unseen[0] == unseen[1]
    # How many positions are reserved.
    slots = [
        example,
        dataclasses.replace(example, passage_tokens=99),
        dataclasses.replace(example, most_passages=9),
    ]
    assert len({examples_digest([one], WINDOWS) for one in slots}) == len(slots)


def test_another_dtype_is_scored_again(store: ScoreStore, scored: Calls) -> None:
    run_again(store, scored)
    reader = load()
    model: Any = reader.model
    model.to(torch.bfloat16)
    placement = dataclasses.replace(reader.placement, dtype=torch.bfloat16)
    coarse = dataclasses.replace(reader, placement=placement)
    assert run_again(store, scored, readers=AdaptedReaders(lambda: coarse)) == ["none", "append"]


def test_an_adapters_row_is_of_its_weights_wherever_it_lies(
    adapters: Path, store: ScoreStore, scored: Calls, tmp_path: Path
) -> None:
    arms = [NONE, *adapter_arms(adapters / "marks", ["append"])]
    assert run_again(store, scored, arms=arms) == ["none", "append"]
    shutil.copytree(adapters / "marks", tmp_path / "moved")
    moved = [NONE, *adapter_arms(tmp_path / "moved", ["append"])]
    assert run_again(store, scored, arms=moved) == []
    shutil.copy(adapters / "other" / WEIGHTS, tmp_path / "moved")
    assert run_again(store, scored, arms=moved) == ["append"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "",
        lambda _: "[]",
        lambda _: '{"nats": 5}',
        lambda _: '{"nats": [1.0]}',
        lambda _: '{"windows": 9, "nats": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]}',
        lambda _: '{"windows": "1", "nats": [1.0]}',
        lambda _: "[" * 100_000,
        lambda text: json.dumps({"nats": [math.nan for _ in json.loads(text)["nats"]]}),
        lambda text: json.dumps({"nats": [None for _ in json.loads(text)["nats"]]}),
    ],
)
def test_damaged_rows_are_scored_again(
    damage: Callable[[str], str], store: ScoreStore, scored: Calls
) -> None:
    run_again(store, scored)
    (damaged,) = (path for path in store.folder.iterdir() if '"append' in path.read_text("utf-8"))
    whole = damaged.read_text("utf-8")
    damaged.write_text(damage(whole), "utf-8")
    assert run_again(store, scored) == ["append"]
    assert damaged.read_text("utf-8") == whole


def test_a_sweep_scores_no_retrieval_once(scored: Calls) -> None:
    """Passages are nothing to it, so that one row serves several of their settings."""
    settings = [dataclasses.replace(RETRIEVAL, passage_tokens=m) for m in (8, 24)]
    judged = [made_up(one) for one in settings]
    started: list[int] = []
    advanced: list[int] = []

    def start(total: int) -> Callable[[], None]:
        started.append(total)
        return lambda: advanced.append(1)

    arms = [NONE, Arm("append")]
    first, second = evaluate(arms, judged, AdaptedReaders(load), settings=FEW, start=start)
    assert [pattern for pattern, _ in scored] == ["none", "append", "append"]
    assert started == [len(advanced)] == [3 * len(judged[0].examples)]
    assert first.rows[0].perplexity == second.rows[0].perplexity
    assert first.rows[1].perplexity != second.rows[1].perplexity


# AdaptedReaders


def test_one_model_is_in_memory_at_a_time(adapters: Path) -> None:
    loaded: list[weakref.ReferenceType[PreTrainedModel]] = []

    def counted() -> Reader:
        assert [one() for one in loaded if one() is not None] == []
        reader = load()
        loaded.append(weakref.ref(reader.model))
        return reader

    arms = [
        *adapter_arms(adapters / "marks", ["append", "none"]),
        NONE,
        *adapter_arms(adapters / "bare", ["prepend"]),
        Arm("append"),
    ]
    judged = [made_up(), made_up(seed=1)]
    gc.disable()
    try:
        (table, _) = evaluate(arms, judged, AdaptedReaders(counted), settings=FEW)
    finally:
        gc.enable()
    assert [row.arm for row in table.rows] == arms
    assert len(loaded) == 2  # one serves until a second adapter is put on


def test_a_reader_that_is_taken_is_given_to_nobody_else() -> None:
    readers = AdaptedReaders(load)
    first = readers.get()
    assert readers.get() is first
    assert readers.take() is first
    assert readers.get() is not first
    assert readers.take() is not readers.take()


def test_adapters_of_another_model_are_refused_before_anything_is_scored(
    adapters: Path, scored: Calls
) -> None:
    arms = [NONE, *adapter_arms(adapters / "marks", ["append"])]
    with pytest.raises(
        AdapterError,
        match=r"on llama \(llama, \w{12}\), but llama \(llama, \w{12}\) is another model",
    ):
        evaluate(arms, [made_up()], AdaptedReaders(other_model))
    assert scored == []


# The adapters of the paper's table


@pytest.mark.parametrize("echo", [0, 4])
def test_missing_adapters_are_trained_with_the_same_windows_and_settings(
    echo: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, str, Marks, int]] = []
    readers: list[Reader] = []
    settings = TrainingSettings(echo_tokens=echo, steps=7, seed=3)
    retrieval = dataclasses.replace(RETRIEVAL, pattern="append")
    run = Run(settings, retrieval, WINDOWS, {"documents": ["x"]})
    examples = made_up().examples

    def record(reader: Reader, on: Sequence[Example], own: Run, out: Path, **_: Any) -> None:
        assert on == examples
        assert (own.windows, own.data) == (run.windows, run.data)
        assert own.settings == dataclasses.replace(
            settings, marks=own.settings.marks, echo_tokens=own.settings.echo_tokens
        )
        assert own.retrieval == dataclasses.replace(RETRIEVAL, pattern=own.retrieval.pattern)
        assert all(reader is not other for other in readers)
        readers.append(reader)
        about = (own.retrieval.pattern, own.settings.marks, own.settings.echo_tokens)
        called.append((str(out.relative_to(tmp_path)), *about))

    monkeypatch.setattr("flashback.training.reproduce.train", record)
    finished = tmp_path / "adapters" / "prepend-frozen"
    finished.mkdir(parents=True)
    (finished / "flashback.json").write_text("{}", "utf-8")
    shown: list[str] = []

    def show(title: str) -> AbstractContextManager[OnStep]:
        shown.append(title)
        return nullcontext(lambda _: None)

    train_missing(tmp_path, AdaptedReaders(load), examples, run, show)
    assert called[:6] == [
        ("adapters/none", "none", Marks.NONE, 0),
        ("adapters/prepend-none", "prepend", Marks.NONE, 0),
        ("adapters/prepend-trained", "prepend", Marks.TRAINED, 0),
        ("adapters/append-none", "append", Marks.NONE, 0),
        ("adapters/append-frozen", "append", Marks.FROZEN, 0),
        ("adapters/append-trained", "append", Marks.TRAINED, 0),
    ]
    assert [about[1:] for about in called[6:]] == [
        *[("append", Marks.TRAINED, 4)] * (echo > 0),
        ("slot", Marks.NONE, 0),
        ("slot", Marks.TRAINED, 0),
    ]
    assert len({folder for folder, *_ in called}) == len(called) == len(set(shown))


# Models and inputs that cannot be scored


def test_a_model_that_gives_no_numbers_is_refused_and_nothing_is_kept(store: ScoreStore) -> None:
    def broken() -> Reader:
        reader = load()
        embedding: Any = reader.model.get_input_embeddings()
        with torch.no_grad():
            embedding.weight[reader.encode("w")] = torch.nan
        return reader

    with pytest.raises(TrainingError, match=r"append \(bare\): .* not finite on a window of T0; "):
        evaluate([Arm("append")], [made_up()], AdaptedReaders(broken), store=store)
    assert not store.folder.exists()


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(TrainingError, match="no window to score"):
        evaluate([NONE], [EvaluationSet((), (), WINDOWS)], AdaptedReaders(load))


def test_a_reader_without_an_end_of_text_cannot_have_one_before_passages() -> None:
    from flashback.errors import SettingsError

    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    reader = dataclasses.replace(tiny_reader(), tokenizer=tokenizer)
    with pytest.raises(SettingsError, match="llama has no end-of-text token"):
        Arm("append", FrameKind.EOS).arrangement(reader)


def test_cards_of_the_adapters_are_as_the_tests_need_them(adapters: Path) -> None:
    assert read_card(adapters / "marks").echo_tokens == 5
