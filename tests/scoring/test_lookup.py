"""What is found for a window: never the document itself, k passages of m tokens, kept on disk."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashback.corpus.documents import CorpusReport, Document
from flashback.corpus.passages import Passage
from flashback.errors import FlashBackWarning
from flashback.readers.queries import query_text
from flashback.readers.reader import Reader
from flashback.retrieval.bm25 import BM25Index, IndexSettings, build_index
from flashback.retrieval.protocol import Hit
from flashback.scoring.lookup import Found, Lookup, LookupCache, examples_of
from flashback.scoring.window_settings import Protocol, WindowSettings
from flashback.scoring.windows import Window, cut_windows
from flashback.settings import FrameText, QueryForm, RetrievalSettings, SearchOptions
from tiny_readers import tiny_reader


@cache
def reader() -> Reader:
    """One token per character."""
    return tiny_reader()


def words(seed: int, count: int) -> list[str]:
    """Of a vocabulary so small that every text has some words of every other."""
    return random.Random(seed).choices([f"word{number}" for number in range(60)], k=count)


OWN_WORDS = words(1000, 60)
OWN = Document("own", "Own title", " ".join(OWN_WORDS))
RETRIEVAL = RetrievalSettings(stride=16, query_tokens=40, passage_tokens=30, passages=3)
WINDOWS = WindowSettings(window_tokens=128, first_boundary=32)


def windows_of(*documents: Document, stride: int = RETRIEVAL.stride) -> list[Window]:
    return list(cut_windows(documents, reader(), WINDOWS, stride))


def passage(number: int, document: str, title: str, text: Sequence[str]) -> Passage:
    return Passage(f"p{number}", document, title, " ".join(text))


FOREIGN = [passage(n, f"other{n}", f"Other {n}", words(n + 1, 40)) for n in range(30)]
COPIES = [
    passage(100, "copy", "A copy", OWN_WORDS[:40]),
    passage(101, "copy", "A copy", [*OWN_WORDS[20:50], *words(50, 8)]),
    passage(102, "shout", "A loud copy", [word.upper() + "," for word in OWN_WORDS[10:50]]),
]
PARTLY = passage(110, "quote", "A quotation", [*OWN_WORDS[30:42], *words(51, 20)])
"""Five of its 25 8-grams are the document's: no copy."""
FORBIDDEN = [
    *COPIES,
    *(passage(120 + n, "own", f"Part {n}", words(60 + n, 40)) for n in range(4)),
    *(passage(130 + n, f"elsewhere{n}", "Own title", words(70 + n, 40)) for n in range(4)),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> BM25Index:
    """Foreign passages and what must not come back, all sharing words with the document."""
    folder = tmp_path_factory.mktemp("index") / "index"
    passages = [*FORBIDDEN, PARTLY, *FOREIGN]
    build_index(folder, passages, IndexSettings(deduplicate=False), CorpusReport())
    return BM25Index.open(folder)


def repeats(text: str) -> float:
    """The share of a text's 8-grams that are the document's."""
    terms = text.lower().replace(",", "").split()
    grams = [tuple(terms[at : at + 8]) for at in range(len(terms) - 7)]
    known = [tuple(OWN_WORDS[at : at + 8]) for at in range(len(OWN_WORDS) - 7)]
    return sum(gram in known for gram in grams) / len(grams)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_best_foreign_passages_are_found_and_nothing_of_the_document(
    index: BM25Index, k: int
) -> None:
    """Against everything that the index has, filtered here."""
    wanted = replace(RETRIEVAL, passages=k, min_relative_score=0.0)
    windows = windows_of(OWN)
    lookup = Lookup(reader(), index, wanted)
    shut_out = overlapping = 0
    for window, found in zip(windows, lookup.search(windows), strict=True):
        ranked = index.search(lookup.queries(window), SearchOptions(k=1000))
        for at, hits in enumerate(ranked):
            foreign = [hit for hit in hits if hit.document_id != "own" and hit.title != "Own title"]
            good = [hit for hit in foreign if repeats(hit.text) < 0.5]
            assert found.hits[at] == tuple(good[:k])
            assert len(found.hits[at]) == k
            assert found.copies[at] == foreign.index(good[k - 1]) - (k - 1)
            assert found.overlapping[at] == (repeats(good[0].text) > 0)
            shut_out += hits[0] != good[0]
            overlapping += found.overlapping[at]
    assert shut_out > len(windows)  # what must not come back would often have been first
    assert overlapping


class CannedRetriever:
    """Gives every query the same hits, as many as are asked for, and remembers the questions."""

    def __init__(self, hits: Sequence[Hit]) -> None:
        self.hits = list(hits)
        self.asked: list[tuple[list[str], SearchOptions]] = []

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        self.asked.append((list(queries), options))
        return [self.hits[: options.k] for _ in queries]


def hit(number: int, text: str | None = None) -> Hit:
    return Hit(f"p{number}", f"d{number}", "t", text or " ".join(words(number, 30)), -float(number))


def copied(number: int) -> Hit:
    return hit(number, " ".join(OWN_WORDS[number : number + 30]))


@settings(deadline=None, derandomize=True)
@given(kinds=st.lists(st.booleans(), max_size=20), k=st.integers(1, 5))
def test_spare_hits_take_the_place_of_copies(kinds: list[bool], k: int) -> None:
    """Eight more than k are asked for."""
    ranked = [copied(n) if is_copy else hit(n) for n, is_copy in enumerate(kinds)]
    retriever = CannedRetriever(ranked)
    lookup = Lookup(reader(), retriever, replace(RETRIEVAL, passages=k))
    (found,) = lookup.search(windows_of(OWN)[:1])
    seen = kinds[: k + 8]
    good = [number for number, is_copy in enumerate(seen) if not is_copy][:k]
    considered = good[-1] if len(good) == k else len(seen)
    for at in range(len(found.hits)):
        assert [int(one.id[1:]) for one in found.hits[at]] == good
        assert found.copies[at] == sum(seen[:considered])
    if sum(kinds) <= 8 and len(kinds) >= k + 8:
        assert all(len(hits) == k for hits in found.hits)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (" ".join(OWN_WORDS[3:8]), False),  # fewer words than an 8-gram has
        (" ".join(OWN_WORDS[3:8]).upper() + "!", False),
        (" ".join(reversed(OWN_WORDS[3:8])), True),
        ("wor", True),  # the beginning of a word
        ("...", True),
        (" ".join([*OWN_WORDS, *words(7, 68), *words(8, 400)]), True),
        (" ".join([*OWN_WORDS, *OWN_WORDS, *words(8, 400)]), False),  # by what is shown of it
    ],
)
def test_short_and_long_copies_are_found_too(text: str, kept: bool) -> None:
    lookup = Lookup(reader(), CannedRetriever([hit(0, text)]), RETRIEVAL)
    (found,) = lookup.search(windows_of(OWN)[:1])
    assert all(bool(hits) == kept for hits in found.hits)


@pytest.mark.parametrize("protocol", Protocol)
def test_looking_ahead_stops_at_the_documents_first_stride_alone(protocol: Protocol) -> None:
    """Where each stride has a context of its own, a document has several windows in a row."""
    cutting = replace(WINDOWS, protocol=protocol)
    document = Document("long", "", "".join(random.Random(0).choices("abcdefgh", k=900)))
    windows = list(cut_windows([document], reader(), cutting, RETRIEVAL.stride))
    assert len(windows) > 1
    lookup = Lookup(reader(), CannedRetriever([]), replace(RETRIEVAL, lookahead=5))
    for number, window in enumerate(windows):
        first = number == 0 or protocol is Protocol.WINDOWS
        for at, (cut, query) in enumerate(zip(window.cuts, lookup.queries(window), strict=True)):
            end = cut.boundary - (0 if first and at == 0 else 5)
            assert reader().decode(window.ids[:end]).endswith(query)
            assert query


def test_a_lookup_that_cannot_be_kept_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = LookupCache(tmp_path / "file", "index")
    lookup = Lookup(reader(), CannedRetriever([hit(0)]), RETRIEVAL)
    with pytest.warns(FlashBackWarning, match="the lookup is not kept"):
        found, from_disk = cache.find(lookup, windows_of(OWN), RETRIEVAL)
    assert found == list(lookup.search(windows_of(OWN)))
    assert not from_disk


def test_copies_are_those_of_the_windows_own_document() -> None:
    """Each document is compared with what is found for it, whatever came before."""
    other = Document("other", "Other title", " ".join(words(1, 60)))
    ranked = [copied(0), hit(200, " ".join(words(1, 30))), hit(2)]
    retriever = CannedRetriever(ranked)
    lookup = Lookup(reader(), retriever, replace(RETRIEVAL, passages=1))
    windows = windows_of(OWN, other, OWN)
    found = lookup.search(windows)
    first = {"own": ranked[1], "other": ranked[0]}
    for window, one in zip(windows, found, strict=True):
        assert all(hits == (first[window.document.id],) for hits in one.hits)
    assert [len(queries) for queries, _ in retriever.asked] == [len(one.cuts) for one in windows]


def test_what_the_settings_forbid_is_forbidden_besides() -> None:
    retriever = CannedRetriever([])
    wanted = replace(
        RETRIEVAL, min_score=2.5, forbid_titles=("A", "B"), forbid_documents=("c",), passages=4
    )
    untitled = Document("untitled", "", OWN.text)
    for document in (OWN, untitled):
        found = list(Lookup(reader(), retriever, wanted).search(windows_of(document)[:1]))
        assert not any(found[0].hits)
    own, none = (options for _, options in retriever.asked)
    assert own == SearchOptions(12, 2.5, ("A", "B", "Own title"), ("c", "own"))
    assert none == SearchOptions(12, 2.5, ("A", "B"), ("c", "untitled"))


def test_passages_far_below_the_best_that_is_no_copy_are_left_out() -> None:
    copy = Hit("copy", "copy", "", OWN.text, 100.0)
    others = [
        Hit(name, name, "", f"{name} text", score)
        for name, score in [("a", 8.0), ("b", 4.0), ("c", 3.9)]
    ]
    retriever = CannedRetriever([copy, *others])
    [found, *_] = Lookup(reader(), retriever, RETRIEVAL).search(windows_of(OWN)[:1])
    assert all([hit.id for hit in hits] == ["a", "b"] for hits in found.hits)


def test_forbidden_titles_never_come_back(index: BM25Index) -> None:
    titles = tuple(f"Other {number}" for number in range(0, 30, 2))
    lookup = Lookup(reader(), index, replace(RETRIEVAL, forbid_titles=titles))
    found = list(lookup.search(windows_of(OWN)))
    seen = {one.title for each in found for hits in each.hits for one in hits}
    assert len(seen) > 2
    assert not seen & {*titles, "Own title"}


@pytest.mark.parametrize("length", [1, 7, 40, 1000])
def test_queries_are_the_ends_of_the_contexts(length: int) -> None:
    """Text of the last ℓ tokens, here characters, without BOS."""
    lookup = Lookup(reader(), CannedRetriever([]), replace(RETRIEVAL, query_tokens=length))
    start = 0
    for window in windows_of(OWN):
        text = OWN.text[start:]
        for cut, query in zip(window.cuts, lookup.queries(window), strict=True):
            context = text[: cut.boundary - 1]
            assert query == context[-length:]
        start += WINDOWS.window_tokens - 1


@pytest.mark.parametrize("form", QueryForm)
def test_queries_of_every_form_are_made_of_the_contexts(form: QueryForm) -> None:
    wanted = replace(RETRIEVAL, query_form=form)
    lookup = Lookup(reader(), CannedRetriever([]), wanted)
    for window in windows_of(OWN):
        contexts = map(window.context, window.cuts)
        assert lookup.queries(window) == [query_text(reader(), one, wanted) for one in contexts]


@settings(deadline=None, derandomize=True)
@given(
    texts=st.lists(st.lists(st.text("abc é", max_size=20), max_size=4), min_size=1, max_size=4),
    limit=st.integers(1, 12),
    k=st.integers(1, 3),
)
def test_passages_are_the_first_k_hits_cut_to_m_tokens_each(
    texts: list[list[str]], limit: int, k: int
) -> None:
    wanted = RetrievalSettings(passage_tokens=limit, passages=k)
    hits = tuple(tuple(hit(n, text) for n, text in enumerate(one) if text) for one in texts)
    found = Found(hits, (0,) * len(texts), (False,) * len(texts))
    for at, ids in enumerate(found.passages(reader(), wanted)):
        cut = [one.text.encode()[:limit] for one in hits[at][:k]]
        assert len(ids) == sum(map(len, cut))
        ends = [sum(map(len, cut[:number])) for number in range(len(cut) + 1)]
        for text, (begin, end) in zip(cut, pairwise(ends), strict=True):
            assert reader().decode(ids[begin:end]) == text.decode(errors="replace")


def test_special_tokens_in_a_passage_are_text() -> None:
    found = Found(((hit(0, "<s>a"),),), (0,), (False,))
    (ids,) = found.passages(reader(), RETRIEVAL)
    assert len(ids) == 4
    assert 0 not in ids


def test_examples_are_windows_with_the_tokens_found_for_them() -> None:
    windows = windows_of(OWN)
    lookup = Lookup(reader(), CannedRetriever([hit(1), hit(2)]), RETRIEVAL)
    found = list(lookup.search(windows))
    examples = examples_of(windows, found, reader(), RETRIEVAL)
    assert [one.window for one in examples] == windows
    for example in examples:
        each = tuple(reader().encode(hit(1).text)[:30] + reader().encode(hit(2).text)[:30])
        assert example.passages == (each,) * len(example.window.cuts)
    with pytest.raises(ValueError, match="zip"):
        examples_of(windows, found[:-1], reader(), RETRIEVAL)


@pytest.mark.parametrize(("step", "k"), [(1, 1), (2, 3), (3, 2)])
def test_one_lookup_serves_longer_strides_and_fewer_passages(
    index: BM25Index, step: int, k: int
) -> None:
    wanted = replace(RETRIEVAL, stride=4)
    fine = list(cut_windows([OWN], reader(), WINDOWS, 4, multiple=step))
    every = Lookup(reader(), index, wanted).search(fine)
    fewer = Lookup(reader(), index, replace(wanted, passages=k))
    for all_found, own in zip(every, fewer.search(one.every(step) for one in fine), strict=True):
        part = all_found.every(step, k)
        assert (part.hits, part.overlapping) == (own.hits, own.overlapping)


FIRST = Document("first", "First", " ".join(words(200, 40)))
SECOND = Document("second", "Second", " ".join(words(201, 40)))


class Bench:
    """A cache in a folder, and one retriever that counts what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.retriever = CannedRetriever([hit(1), hit(2), hit(3, "ünïcödé \u2028 text"), hit(4)])

    def find(
        self,
        documents: Sequence[Document] = (FIRST, SECOND),
        *,
        settings: RetrievalSettings = RETRIEVAL,
        index: str = "checksum",
        **named: Any,
    ) -> tuple[list[Found], bool, int]:
        """What is found, whether it came from disk, and how many searches it took."""
        windows = windows_of(*documents, stride=settings.stride)
        before = len(self.retriever.asked)
        lookup = Lookup(reader(), self.retriever, settings)
        cache = LookupCache(self.folder, index)
        found, from_disk = cache.find(lookup, windows, settings, **named)
        assert len(found) == len(windows)
        return found, from_disk, len(self.retriever.asked) - before

    @property
    def file(self) -> Path:
        """The one file in the folder."""
        (path,) = self.folder.iterdir()
        return path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "not" / "there yet")


def test_the_second_time_comes_from_disk(bench: Bench) -> None:
    found, from_disk, searches = bench.find()
    assert (from_disk, searches) == (False, len(found))
    assert found[0].hits[0] == tuple(bench.retriever.hits[:3])
    assert bench.find() == (found, True, 0)


@pytest.mark.parametrize(
    "irrelevant",
    [
        replace(RETRIEVAL, passage_tokens=5),
        replace(RETRIEVAL, pattern="prepend"),
        replace(RETRIEVAL, frame=FrameText("", "")),
    ],
)
def test_what_only_the_reader_is_shown_needs_no_new_search(
    bench: Bench, irrelevant: RetrievalSettings
) -> None:
    found, _, _ = bench.find()
    assert bench.find(settings=irrelevant) == (found, True, 0)


LONGER = replace(SECOND, text=SECOND.text + ".")
"""Too little for another stride: windows and queries stay the same."""


@pytest.mark.parametrize(
    "changed",
    [
        {"documents": (FIRST, LONGER)},
        {"documents": (FIRST, replace(SECOND, title="Another"))},
        {"documents": (FIRST, replace(SECOND, id="another"))},
        {"documents": (SECOND, FIRST)},
        {"documents": (FIRST,)},
        {"index": "another checksum"},
        {"settings": replace(RETRIEVAL, query_tokens=39)},
        {"settings": replace(RETRIEVAL, query_form=QueryForm.TERMS)},
        {"settings": replace(RETRIEVAL, passages=2)},
        {"settings": replace(RETRIEVAL, min_score=0.5)},
        {"settings": replace(RETRIEVAL, forbid_titles=("First",))},
        {"settings": replace(RETRIEVAL, forbid_documents=("first",))},
        {"settings": replace(RETRIEVAL, stride=15)},
    ],
)
def test_whatever_decides_what_is_found_is_searched_anew(
    bench: Bench, changed: dict[str, Any]
) -> None:
    found, _, _ = bench.find()
    anew, from_disk, searches = bench.find(**changed)
    assert (from_disk, searches) == (False, len(anew))
    assert bench.find(**changed) == (anew, True, 0)
    assert bench.find() == (found, True, 0)  # the old entry stays


def test_a_longer_text_with_the_same_windows_is_no_test_of_queries() -> None:
    """What the test above takes for granted of the changed text."""
    before, after = windows_of(SECOND), windows_of(LONGER)
    assert [(one.ids, one.cuts) for one in before] == [(one.ids, one.cuts) for one in after]


def without_the_last_line(whole: bytes) -> bytes:
    return whole[: whole.rstrip().rindex(b"\n") + 1]


def altered(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    """Change the first record, and leave it JSON."""

    def alter(whole: bytes) -> bytes:
        first, _, rest = whole.partition(b"\n")
        record = json.loads(first)
        change(record)
        return json.dumps(record).encode() + b"\n" + rest

    return alter


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-2],
        lambda whole: b"\0" * len(whole),
        lambda whole: b"\xff" + whole,
        lambda whole: whole + whole,
        lambda whole: whole.replace(b"\n", b"\nnull\n", 1),
        lambda whole: b"[]\n" * len(whole.splitlines()),
        lambda whole: b'"text"\n' * len(whole.splitlines()),
        without_the_last_line,
        altered(lambda record: record.pop("hits")),
        altered(lambda record: record.pop("copies")),
        altered(lambda record: record.pop("overlapping")),
        altered(lambda record: record.update(hits=None)),
        altered(lambda record: record["hits"].pop()),
        altered(lambda record: record["copies"].append(0)),
        altered(lambda record: record["hits"][0][0].pop("text")),
        altered(lambda record: record["hits"][0][0].update(unknown=1)),
    ],
)
def test_a_damaged_entry_is_searched_and_written_anew(
    bench: Bench, damage: Callable[[bytes], bytes]
) -> None:
    found, _, searches = bench.find()
    whole = bench.file.read_bytes()
    bench.file.write_bytes(damage(whole))
    assert bench.find() == (found, False, searches)
    assert bench.file.read_bytes() == whole
    assert bench.find() == (found, True, 0)


def test_progress_is_told_of_searches_only(bench: Bench) -> None:
    told: list[int] = []

    def start(count: int) -> Callable[[], None]:
        told.append(count)
        return lambda: told.append(0)

    found, _, _ = bench.find(start=start)
    assert told == [len(found), *[0] * len(found)]
    bench.find(start=start)
    assert len(told) == 1 + len(found)


def test_an_interrupted_search_leaves_nothing_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = bench.retriever.search

    def interrupted(queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        if bench.retriever.asked:
            raise KeyboardInterrupt
        return search(queries, options)

    with monkeypatch.context() as patch:
        patch.setattr(bench.retriever, "search", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench.find()
    assert not bench.folder.exists() or not list(bench.folder.iterdir())
    assert bench.find()[1] is False
