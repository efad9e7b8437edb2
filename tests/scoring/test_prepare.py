"""Documents become windows with passages: once for all settings, as each of them alone would."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain, product
from pathlib import Path

import pytest

from flashback.corpus.documents import CorpusReport, Document
from flashback.corpus.passages import Passage
from flashback.errors import CorpusError, SettingsError
from flashback.evaluation.perplexity import contamination
from flashback.readers.reader import Reader
from flashback.retrieval.bm25 import BM25Index, IndexSettings, build_index
from flashback.retrieval.protocol import Hit
from flashback.scoring.lookup import Lookup, LookupCache
from flashback.scoring.retrieved_windows import RetrievedWindows, check_found, cut_and_retrieve
from flashback.scoring.window_settings import Protocol, WindowSettings
from flashback.scoring.windows import Window
from flashback.settings import RetrievalSettings, SearchOptions
from tiny_readers import deaf_reader, tiny_reader

WINDOWS = WindowSettings(window_tokens=96, first_boundary=24)
LENGTHS = (300, 60, 30, 145)
"""Tokens of the documents without BOS; the third one is too short for the longer strides."""
SWEPT = [
    RetrievalSettings(stride=s, passages=k, passage_tokens=m, query_tokens=length)
    for s, k, m, length in product((4, 8, 16), (1, 2), (5, 20), (6, 12))
]


@cache
def reader() -> Reader:
    """One token per character."""
    return tiny_reader()


def document(length: int, name: str) -> Document:
    drawn = random.Random(name)
    return Document(name, f"Title {name}", "".join(drawn.choices("abcdefg ", k=length)))


DOCUMENTS = [document(length, f"d{number}") for number, length in enumerate(LENGTHS)]


class ByQuery:
    """A retriever whose answer depends on the query alone, and may be empty; it counts."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [self._answer(query, options) for query in queries]

    def _answer(self, query: str, options: SearchOptions) -> list[Hit]:
        self.queries.append(query)
        drawn = random.Random(query)
        scores = [drawn.uniform(0, 10) for _ in range(drawn.choice((0, 1, 2, 12)))]
        hits = [
            Hit(f"p{number}", "elsewhere", "t", f"{number} {query} {score}", score)
            for number, score in enumerate(sorted(scores, reverse=True))
        ]
        return [hit for hit in hits[: options.k] if hit.score >= options.min_score]


def prepared(
    settings: Sequence[RetrievalSettings],
    windows: WindowSettings = WINDOWS,
    retriever: ByQuery | None = None,
    documents: Sequence[Document] = DOCUMENTS,
) -> list[RetrievedWindows]:
    return cut_and_retrieve(documents, reader(), retriever or ByQuery(), settings, windows)


def targets(one: RetrievedWindows) -> list[tuple[str, tuple[int, ...]]]:
    """Of every window, in a row."""
    return [
        (window.document.id, tuple(token for cut in window.cuts for token in window.targets(cut)))
        for window in one.windows
    ]


# Several settings


def test_a_sweep_has_the_same_targets_for_all() -> None:
    found = prepared(SWEPT)
    assert len(found) == len(SWEPT)
    for one, settings in zip(found, SWEPT, strict=True):
        assert targets(one) == targets(found[0])
        assert {window.stride for window in one.windows} == {settings.stride}
    # As many as the longest stride allows: three windows of 96 tokens, and of 16 and 50 more.
    lengths = [(name, len(tokens)) for name, tokens in targets(found[0])]
    assert lengths == [
        *[("d0", 64)] * 3,
        *[("d1", 32)],
        *[("d3", 64), ("d3", 16)],
    ]


def test_a_sweep_finds_what_each_setting_alone_finds_on_the_same_windows() -> None:
    empty = 0
    for one, settings in zip(prepared(SWEPT), SWEPT, strict=True):
        alone = list(Lookup(reader(), ByQuery(), settings).search(one.windows))
        assert [found.hits for found in one.found] == [found.hits for found in alone]
        examples = one.examples(reader(), settings)
        for example, found in zip(examples, alone, strict=True):
            most = settings.passage_tokens
            parts = [[reader().encode(hit.text)[:most] for hit in hits] for hits in found.hits]
            assert list(example.passages) == [tuple(chain.from_iterable(one)) for one in parts]
            limit = settings.passages * settings.passage_tokens
            assert all(len(passage) <= limit for passage in example.passages)
            empty += sum(not passage for passage in example.passages)
    assert empty > 0


def test_a_setting_alone_begins_as_it_does_in_a_sweep() -> None:
    """Only behind the last common multiple of the strides may it have more."""
    for one, settings in zip(prepared(SWEPT), SWEPT, strict=True):
        (alone,) = prepared([settings])
        longer = {
            (window.document.id, window.ids[:24]): at for at, window in enumerate(alone.windows)
        }
        for window, found in zip(one.windows, one.found, strict=True):
            at = longer[window.document.id, window.ids[:24]]
            count = len(window.cuts)
            assert alone.windows[at].cuts[:count] == window.cuts
            assert alone.found[at].hits[:count] == found.hits


def test_a_sweep_searches_every_boundary_once_for_every_query_length() -> None:
    retriever = ByQuery()
    found = prepared(SWEPT, retriever=retriever)
    finest = next(one for one, s in zip(found, SWEPT, strict=True) if s.stride == 4)
    assert len(retriever.queries) == 2 * sum(len(window.cuts) for window in finest.windows)


def test_strides_without_a_common_divisor_share_targets_too() -> None:
    settings = [RetrievalSettings(stride=stride, query_tokens=8) for stride in (4, 6)]
    found = prepared(settings)
    assert targets(found[0]) == targets(found[1])
    assert all(len(tokens) % 12 == 0 for _, tokens in targets(found[0]))
    for one, own in zip(found, settings, strict=True):
        alone = list(Lookup(reader(), ByQuery(), own).search(one.windows))
        assert [found.hits for found in one.found] == [found.hits for found in alone]


def test_settings_that_ask_differently_are_looked_up_apart() -> None:
    settings = [RetrievalSettings(stride=8, min_score=score) for score in (0.0, 5.0)]
    for one, own in zip(prepared(settings), settings, strict=True):
        hits = [hit for found in one.found for some in found.hits for hit in some]
        assert hits
        assert all(hit.score >= own.min_score for hit in hits)
        alone = list(Lookup(reader(), ByQuery(), own).search(one.windows))
        assert [found.hits for found in one.found] == [found.hits for found in alone]


@pytest.mark.parametrize("protocol", [Protocol.RANDOM, Protocol.SLIDING])
def test_strides_with_contexts_of_their_own_are_prepared_apart(protocol: Protocol) -> None:
    windows = dataclasses.replace(WINDOWS, protocol=protocol)
    retriever = ByQuery()
    together = prepared(SWEPT, windows, retriever)
    searched = len(retriever.queries)
    alone = ByQuery()
    for one, settings in zip(together, SWEPT, strict=True):
        assert one == prepared([settings], windows, alone)[0]
    # One lookup serves all k and m of a stride and a query length.
    assert searched * 4 == len(alone.queries)


# Which windows


def test_windows_are_drawn_at_random_and_stay_in_order() -> None:
    settings = [SWEPT[0]]
    every = prepared(settings)[0]
    counts = []
    for seed in range(20):
        few = dataclasses.replace(WINDOWS, max_windows=3, seed=seed)
        some = prepared(settings, few)[0]
        assert some == prepared(settings, few)[0]
        at = [every.windows.index(window) for window in some.windows]
        assert at == sorted(set(at))
        assert [every.found[number] for number in at] == list(some.found)
        counts.append(tuple(at))
    assert {len(at) for at in counts} == {3}
    assert len(set(counts)) > 5
    assert {number for at in counts for number in at} == set(range(len(every.windows)))


@pytest.mark.parametrize("limit", [0, 7, 1000])
def test_all_windows_are_used_where_there_are_no_more(limit: int) -> None:
    settings = [RetrievalSettings(stride=16)]
    whole = prepared(settings)[0]
    assert len(whole.windows) <= 7
    assert prepared(settings, dataclasses.replace(WINDOWS, max_windows=limit))[0] == whole


def test_a_sweep_draws_the_same_windows_for_all() -> None:
    found = prepared(SWEPT, dataclasses.replace(WINDOWS, max_windows=2))
    assert all(targets(one) == targets(found[0]) for one in found)
    assert len(found[0].windows) == 2


def test_the_first_window_of_each_document_alone() -> None:
    whole = prepared([RetrievalSettings(stride=16)])[0]
    first = whole.first_windows()
    assert [window.document.id for window in first.windows] == ["d0", "d1", "d3"]
    at = [whole.windows.index(window) for window in first.windows]
    assert at == [0, 3, 4]
    assert list(first.found) == [whole.found[number] for number in at]


# Contexts


def contexts(one: RetrievedWindows) -> list[tuple[Window, int, tuple[int, ...]]]:
    """Every window, boundary and context without BOS."""
    found = []
    for window in one.windows:
        for cut in window.cuts:
            context = window.context(cut)
            assert context[:1] == (0,)
            assert context[1:] == window.ids[cut.boundary - len(context) + 1 : cut.boundary]
            found.append((window, cut.boundary, context[1:]))
    return found


@pytest.mark.parametrize("size", [64, 96, 128])
def test_random_contexts_are_within_the_papers_bounds(size: int) -> None:
    """128 to 367 of 512 tokens; every document's first boundary is behind the longest."""
    settings = [RetrievalSettings(stride=4)]
    windows = WindowSettings(window_tokens=size, protocol=Protocol.RANDOM)
    (one,) = prepared(settings, windows)
    lengths = [len(context) for _, _, context in contexts(one)]
    low, high = size * 128 // 512, size * 367 // 512
    assert min(lengths) >= low
    assert max(lengths) <= high
    assert max(lengths) - min(lengths) > (high - low) * 0.8
    assert one == prepared(settings, windows)[0]
    other = prepared(settings, dataclasses.replace(windows, seed=1))[0]
    assert targets(other) == targets(one)
    assert [len(context) for _, _, context in contexts(other)] != lengths
    firsts = {window.document.id: at for window, at, _ in reversed(contexts(one))}
    assert set(firsts.values()) == {high}


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_sliding_contexts_are_the_last_tokens(stride: int) -> None:
    """N - s tokens, BOS included, so that the context and its targets are a window."""
    settings = [RetrievalSettings(stride=stride)]
    windows = dataclasses.replace(WINDOWS, protocol=Protocol.SLIDING)
    (one,) = prepared(settings, windows)
    full = 0
    for window, boundary, context in contexts(one):
        assert len(context) == min(boundary - 1, 96 - stride - 1)
        assert context == window.ids[1:boundary][-(96 - stride - 1) :]
        full += len(context) == 96 - stride - 1
    assert full > 0
    ends = {window.document.id: at + stride for window, at, _ in contexts(one)}
    assert all(0 <= LENGTHS[int(name[1:])] + 1 - end < stride for name, end in ends.items())


# What cannot be prepared


@pytest.mark.parametrize(
    ("protocol", "strides", "least"),
    [
        (Protocol.WINDOWS, (4,), 24 + 4),
        (Protocol.WINDOWS, (4, 6), 24 + 12),
        (Protocol.SLIDING, (16,), 24 + 16),
        (Protocol.RANDOM, (16,), 96 * 367 // 512 + 16),
    ],
)
def test_documents_that_are_all_too_short(
    protocol: Protocol, strides: tuple[int, ...], least: int
) -> None:
    settings = [RetrievalSettings(stride=stride) for stride in strides]

    def of_length(tokens: int) -> list[RetrievedWindows]:
        windows = dataclasses.replace(WINDOWS, protocol=protocol)
        return prepared(settings, windows, documents=[document(tokens - 1, "one")])  # and BOS

    with pytest.raises(CorpusError) as caught:
        of_length(least - 1)
    message = str(caught.value)
    assert message.startswith(f"no document has {least} tokens, ")
    assert "give longer documents" in message
    assert "\n" not in message
    assert all(len(targets(one)) == 1 for one in of_length(least))


@pytest.mark.parametrize(
    ("protocol", "strides", "least"),
    [
        (Protocol.WINDOWS, (16,), 40),
        (Protocol.WINDOWS, (4, 6), 36),
        (Protocol.SLIDING, (16,), 18),  # BOS, one token and a stride
        (Protocol.SLIDING, (4, 16), 18),
        (Protocol.RANDOM, (16,), 57),  # BOS, 40 tokens and a stride
    ],
)
def test_windows_without_room_for_a_context_and_a_stride(
    protocol: Protocol, strides: tuple[int, ...], least: int
) -> None:
    settings = [RetrievalSettings(stride=stride) for stride in strides]

    def of_size(size: int) -> list[RetrievedWindows]:
        windows = dataclasses.replace(WINDOWS, window_tokens=size, protocol=protocol)
        return prepared(settings, windows)

    with pytest.raises(SettingsError) as caught:
        of_size(least - 1)
    message = str(caught.value)
    assert message.startswith(f"window_tokens={least - 1}: a context of ")
    assert "\n" not in message
    assert ("a multiple of all strides" in message) == (strides == (4, 6))
    for one in of_size(least):
        for window in one.windows:
            for cut in window.cuts:
                assert 0 < len(window.context(cut)) <= least - window.stride


# Nothing found


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> BM25Index:
    """Two passages with words that every document has."""
    folder = tmp_path_factory.mktemp("indexed") / "IDX"
    letters = " ".join(sorted({word for one in DOCUMENTS for word in one.text.split()}))
    passages = [Passage(f"p{n}", f"doc{n}", f"About {n}", f"{letters} {n}") for n in range(2)]
    build_index(folder, passages, IndexSettings(), CorpusReport())
    return BM25Index.open(folder)


FORBIDDING = [
    RetrievalSettings(stride=8, forbid_titles=("About 0", "About 1")),
    RetrievalSettings(stride=8, forbid_documents=("doc0", "doc1")),
    RetrievalSettings(stride=8, min_score=1e6),
]


@pytest.mark.parametrize("settings", FORBIDDING)
def test_an_index_without_a_permitted_passage_says_so(
    settings: RetrievalSettings, index: BM25Index
) -> None:
    found = cut_and_retrieve(DOCUMENTS, reader(), index, [settings], WINDOWS)
    examples = found[0].examples(reader(), settings)
    counted = contamination(examples, found[0].found)
    assert counted.empty == counted.cuts == sum(len(one.window.cuts) for one in examples) > 0
    assert all(not any(example.passages) for example in examples)
    with pytest.raises(CorpusError) as caught:
        check_found(found)
    message = str(caught.value)
    assert message.startswith(f"no passage was found for any of {counted.cuts} boundaries: ")
    assert "forbid_titles" in message
    assert "\n" not in message


def test_passages_without_a_token_are_no_passages(index: BM25Index) -> None:
    """An evaluation, or a training, that would have none says so before it begins."""
    settings = RetrievalSettings(stride=8)
    found = cut_and_retrieve(DOCUMENTS, reader(), index, [settings], WINDOWS)[0]
    assert any(any(one.passages) for one in found.examples(reader(), settings))
    with pytest.raises(CorpusError, match=r"has no tokens for any passage at \d+ boundaries"):
        found.examples(deaf_reader(r"\s\S"), settings)


def test_one_passage_is_enough(index: BM25Index) -> None:
    settings = [RetrievalSettings(stride=8), FORBIDDING[0]]
    found = cut_and_retrieve(DOCUMENTS, reader(), index, settings, WINDOWS)
    check_found(found)
    counted = [
        contamination(one.examples(reader(), own), one.found)
        for one, own in zip(found, settings, strict=True)
    ]
    assert counted[0].empty < counted[1].empty == counted[1].cuts


# Lookups that are kept, and seen


def test_a_kept_lookup_is_not_searched_again(tmp_path: Path) -> None:
    retriever = ByQuery()
    cache_folder = LookupCache(tmp_path, "an index")

    def again(settings: Sequence[RetrievalSettings]) -> tuple[list[RetrievedWindows], int]:
        before = len(retriever.queries)
        found = cut_and_retrieve(
            DOCUMENTS, reader(), retriever, settings, WINDOWS, cache=cache_folder
        )
        return found, len(retriever.queries) - before

    first, searched = again(SWEPT)
    second, nothing = again(SWEPT)
    assert searched > 0
    assert nothing == 0
    assert not any(one.from_disk for one in first)
    assert all(one.from_disk for one in second)
    assert [(one.windows, one.found) for one in second] == [
        (one.windows, one.found) for one in first
    ]
    longer = [dataclasses.replace(one, passage_tokens=7) for one in SWEPT]
    assert again(longer)[1] == 0  # how far passages are cut is nothing to a lookup


def test_progress_counts_every_window_of_every_lookup() -> None:
    totals: list[int] = []
    done: list[int] = []

    def start(total: int) -> Callable[[], None]:
        totals.append(total)
        return lambda: done.append(1)

    found = cut_and_retrieve(DOCUMENTS, reader(), ByQuery(), SWEPT, WINDOWS, start=start)
    assert totals == [len(found[0].windows)] * 2  # a lookup for each length of queries
    assert len(done) == sum(totals)
