"""Where windows begin and end, which tokens are targets, and what each stride is given."""

import dataclasses
import random
from collections.abc import Iterator
from functools import cache
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashback.corpus.documents import Document
from flashback.errors import SettingsError
from flashback.patterns.prompt import Ids
from flashback.readers.reader import Reader
from flashback.scoring.window_settings import Protocol, WindowSettings
from flashback.scoring.windows import Cut, Window, cut_windows, shortened
from tiny_readers import tiny_reader


@cache
def reader(bos: bool) -> Reader:
    """One token per character."""
    return tiny_reader(bos=bos)


def document(length: int, name: str = "d") -> Document:
    """Characters that do not repeat themselves, so that every position can be told from others."""
    drawn = random.Random(f"{name} {length}")
    return Document(name, f"title of {name}", "".join(drawn.choices("abcdefghij", k=length)))


def tokens(of: Document, bos: bool) -> Ids:
    """BOS, if any, and the text's tokens."""
    return reader(bos).bos + tuple(reader(bos).encode(of.text))


def in_a_row(windows: list[Window]) -> Ids:
    """All targets, one after another."""
    return tuple(
        token for window in windows for cut in window.cuts for token in window.targets(cut)
    )


LENGTHS = st.lists(st.integers(0, 250), max_size=3)


@settings(deadline=None, derandomize=True)
@given(
    lengths=LENGTHS,
    size=st.integers(8, 80),
    first=st.integers(1, 20),
    stride=st.integers(1, 12),
    multiple=st.integers(1, 3),
    bos=st.booleans(),
)
def test_windows_tile_the_tokens_of_every_document(
    lengths: list[int], size: int, first: int, stride: int, multiple: int, bos: bool
) -> None:
    documents = [document(length, f"d{number}") for number, length in enumerate(lengths)]
    cutting = WindowSettings(window_tokens=size, first_boundary=first)
    cut = cut_windows(documents, reader(bos), cutting, stride, multiple=multiple)
    begin, unit = reader(bos).bos, stride * multiple
    for one in documents:
        ids = reader(bos).encode(one.text)
        for start in range(0, len(ids), size - len(begin)):
            tile = begin + tuple(ids[start : start + size - len(begin)])
            if len(tile) < first + unit:
                continue  # too short for one stride
            window = next(cut)
            assert window.document == one
            assert window.ids == tile[: len(window.ids)]
            assert len(tile) - len(window.ids) < unit
            check_grid(window, first, stride)
            assert len(window.cuts) % multiple == 0
    assert next(cut, None) is None


def check_grid(window: Window, first: int, stride: int) -> None:
    """Boundaries every s tokens; from the first one on, every token is the target of one stride."""
    assert window.cuts[0].boundary == first
    assert all(b.boundary - a.boundary == stride for a, b in pairwise(window.cuts))
    assert in_a_row([window]) == window.ids[first:]
    assert window.target_count == len(window.ids) - first
    assert window.shares_context
    assert all(window.context(cut) == window.ids[: cut.boundary] for cut in window.cuts)


@settings(deadline=None, derandomize=True)
@given(
    length=st.integers(0, 250),
    stride=st.integers(1, 12),
    first=st.integers(1, 20),
    more=st.integers(2, 60),
    bos=st.booleans(),
)
def test_sliding_gives_the_last_tokens_that_fit_before_every_stride(
    length: int, stride: int, first: int, more: int, bos: bool
) -> None:
    size = max(8, stride + more)
    cutting = WindowSettings(window_tokens=size, first_boundary=first, protocol=Protocol.SLIDING)
    one = document(length)
    windows = list(cut_windows([one], reader(bos), cutting, stride))
    ids, begin = tokens(one, bos), reader(bos).bos
    check_targets(windows, ids, first, stride)
    for window in windows:
        for cut in window.cuts:
            context = window.context(cut)
            assert len(context) == min(cut.boundary, size - stride)  # it fits with its targets
            assert context[: len(begin)] == begin
            rest = len(context) - len(begin)
            assert context[len(begin) :] == ids[cut.boundary - rest : cut.boundary]


def check_targets(windows: list[Window], ids: Ids, first: int, stride: int) -> None:
    """They are the document's tokens from the first boundary on, whole strides, each once."""
    targets = in_a_row(windows)
    assert targets == ids[first:][: len(targets)]
    assert len(ids[first:]) - len(targets) < stride
    assert len(targets) == sum(window.target_count for window in windows)
    assert all(window.cuts for window in windows)


@settings(deadline=None, derandomize=True)
@given(
    length=st.integers(0, 400),
    size=st.integers(8, 200),
    stride=st.integers(1, 12),
    seed=st.integers(0, 5),
    bos=st.booleans(),
)
def test_random_contexts_are_of_the_papers_lengths_in_proportion(
    length: int, size: int, stride: int, seed: int, bos: bool
) -> None:
    cutting = WindowSettings(window_tokens=size, protocol=Protocol.RANDOM, seed=seed)
    one = document(length)
    windows = list(cut_windows([one], reader(bos), cutting, stride))
    ids, begin = tokens(one, bos), reader(bos).bos
    low, high = size * 128 // 512, size * 367 // 512
    check_targets(windows, ids, high, stride)
    for window in windows:
        for cut in window.cuts:
            context = window.context(cut)
            assert low <= len(context) <= high + len(begin)
            assert context[: len(begin)] == begin
            rest = len(context) - len(begin)
            assert context[len(begin) :] == ids[cut.boundary - rest : cut.boundary]
    assert windows == list(cut_windows([one], reader(bos), cutting, stride))


def random_windows(name: str, seed: int) -> list[Window]:
    cutting = WindowSettings(protocol=Protocol.RANDOM, seed=seed)
    return list(cut_windows([document(4000, name)], reader(False), cutting, 4))


def context_lengths(windows: list[Window]) -> list[int]:
    return [len(window.context(cut)) for window in windows for cut in window.cuts]


def test_random_contexts_spread_from_128_to_367_tokens_and_depend_on_seed_and_document() -> None:
    lengths = context_lengths(random_windows("d", 0))
    assert 128 <= min(lengths) < 133
    assert 362 < max(lengths) <= 367
    assert sum(lengths) / len(lengths) == pytest.approx((128 + 367) / 2, abs=8)
    assert lengths != context_lengths(random_windows("d", 1))
    assert lengths != context_lengths(random_windows("e", 0))


@settings(deadline=None, derandomize=True)
@given(
    length=st.integers(60, 250),
    size=st.integers(40, 120),
    seed=st.integers(0, 5),
    bos=st.booleans(),
)
def test_shortened_windows_keep_their_targets_and_the_end_of_each_context(
    length: int, size: int, seed: int, bos: bool
) -> None:
    cutting = WindowSettings(window_tokens=size, first_boundary=20, seed=seed)
    low, high = size * 128 // 512, size * 367 // 512
    for window in cut_windows([document(length)], reader(bos), cutting, 5):
        short = shortened(window, cutting)
        assert in_a_row([short]) == in_a_row([window])
        assert shortened(window, cutting) == short
        for cut, before in zip(short.cuts, window.cuts, strict=True):
            context, whole = short.context(cut), window.context(before)
            rest = len(context) - window.bos
            assert context == whole[: window.bos] + whole[len(whole) - rest :]
            assert min(low, len(whole)) <= len(context) <= high + window.bos


def test_shortening_draws_a_length_for_every_stride_and_window() -> None:
    cutting = WindowSettings(window_tokens=512)
    windows = list(cut_windows([document(2000)], reader(True), cutting, 4))
    drawn = [
        [cut.boundary - cut.start for cut in shortened(window, cutting).cuts if cut.start]
        for window in windows
    ]
    assert all(len(set(lengths)) > 20 for lengths in drawn)
    assert len({tuple(lengths[-10:]) for lengths in drawn}) == len(windows)


def test_shortening_never_lengthens_a_context() -> None:
    window = Window(document(400), tokens(document(400), True), 1, (Cut(300, 290),), 4)
    assert shortened(window, WindowSettings()).cuts == window.cuts


@pytest.mark.parametrize("protocol", [Protocol.WINDOWS, Protocol.SLIDING])
def test_bos_of_several_tokens_is_no_target(protocol: Protocol) -> None:
    """As GLM's two: a first boundary among them moves behind them."""
    several = dataclasses.replace(reader(True))
    begin = (0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "bos", begin)
        cutting = WindowSettings(window_tokens=40, first_boundary=1, protocol=protocol)
        windows = list(cut_windows([document(100)], several, cutting, 4))
    assert windows[0].cuts[0].boundary == len(begin)
    assert in_a_row(windows)[:4] == tuple(several.encode(document(100).text))[:4]
    for window in windows:
        assert all(window.context(cut)[:2] == begin for cut in window.cuts)


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("bos", [False, True])
def test_a_document_too_short_for_one_stride_gives_nothing(protocol: Protocol, bos: bool) -> None:
    cutting = WindowSettings(window_tokens=40, first_boundary=28, protocol=protocol)
    least = 28 + 6 - bos  # 28 is where random contexts of 40 tokens begin, too

    def count(length: int) -> int:
        return len(list(cut_windows([document(length)], reader(bos), cutting, 6)))

    assert [count(length) for length in (0, 1, least - 1, least)] == [0, 0, 0, 1]


@pytest.mark.parametrize("protocol", Protocol)
def test_windows_come_document_by_document_as_they_are_asked_for(protocol: Protocol) -> None:
    read = []

    def documents() -> Iterator[Document]:
        for name in ("first", "short", "second"):
            read.append(name)
            yield document(5 if name == "short" else 300, name)

    cutting = WindowSettings(window_tokens=64, protocol=protocol)
    windows = cut_windows(documents(), reader(True), cutting, 4)
    assert next(windows).document.id == "first"
    assert read == ["first"]
    names = [name for name, _ in groupby(window.document.id for window in windows)]
    assert names == ["first", "second"]


@settings(deadline=None, derandomize=True)
@given(step=st.integers(1, 4), stride=st.integers(1, 6), length=st.integers(0, 250))
def test_longer_strides_have_the_same_targets(step: int, stride: int, length: int) -> None:
    cutting = WindowSettings(window_tokens=70, first_boundary=9)
    fine = list(cut_windows([document(length)], reader(True), cutting, stride, multiple=step))
    coarse = list(cut_windows([document(length)], reader(True), cutting, stride * step))
    assert [window.every(step) for window in fine] == coarse
    assert in_a_row(fine) == in_a_row(coarse)


def test_only_a_cut_that_begins_behind_bos_has_a_context_of_its_own() -> None:
    ids = tokens(document(30), True)
    own = Window(document(30), ids, 1, (Cut(10), Cut(14, 2)), 4)
    assert not own.shares_context
    assert [own.context(cut) for cut in own.cuts] == [ids[:10], (0, *ids[2:14])]
    assert Window(document(30), ids, 1, (Cut(10), Cut(14, 1)), 4).shares_context
    assert not Window(document(30), ids, 0, (Cut(10), Cut(14, 1)), 4).shares_context


def test_an_unknown_protocol_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"protocol='tiles': expected one of windows, random"):
        WindowSettings(protocol="tiles")  # type: ignore[arg-type]
    assert WindowSettings(protocol="random").protocol is Protocol.RANDOM  # type: ignore[arg-type]
