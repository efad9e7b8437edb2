"""A dense build that is interrupted goes on where it was, and gives what it would have given.

Run as a program, this file is the builder that a test kills.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("usearch")

from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.errors import IndexFolderError
from flashback.retrieval import vector_parts
from flashback.retrieval.bm25 import IndexSettings, build_index
from flashback.retrieval.dense import build_dense
from flashback.retrieval.index_folder import PART, Manifest
from flashback.retrieval.kinds import open_index
from flashback.retrieval.vector_parts import VectorParts
from retrieval.letters import Letters

BATCH, PART_SIZE = 2, 8
COUNT = 4 * PART_SIZE + 3
"""Passages, of which the last part is not full."""


class Counting(Letters):
    """Counts what it encodes; fails where it has encoded so many batches."""

    def __init__(self, batches: int | None = None, fail: Callable[[], None] = lambda: None) -> None:
        self.texts = 0
        self._left = batches
        self._fail = fail

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        if self._left == 0:
            self._fail()
        if self._left is not None:
            self._left -= 1
        self.texts += len(texts)
        return super().encode(texts)


def interrupt() -> None:
    raise KeyboardInterrupt


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def passages(count: int = COUNT, word: str = "word") -> list[Passage]:
    texts = (np.base_repr(n * 7919, 36).lower().strip("0123456789") for n in range(count))
    return [Passage(f"{n}#0", str(n), f"{n}", f"{word} {text}") for n, text in enumerate(texts)]


def build(
    folder: Path,
    encoder: Letters,
    given: Sequence[Passage] | None = None,
    told: list[int] | None = None,
    *,
    title: bool = True,
) -> Manifest:
    heard: list[int] = [] if told is None else told

    def on_encoding(total: int, ready: int) -> Callable[[int], None]:
        heard.extend([total, ready])
        return heard.append

    return build_dense(
        folder,
        passages() if given is None else given,
        IndexSettings(title=title),
        encoder,
        CorpusReport(),
        on_encoding=on_encoding,
    )


def interrupted(folder: Path, batches: int, *, title: bool = True) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(folder, Counting(batches, interrupt), title=title)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture(autouse=True, scope="module")
def small_parts() -> Iterator[None]:
    """Parts of few passages."""
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch.setattr)
        yield


def make_small(set_: Callable[[object, str, int], None]) -> None:
    set_(vector_parts, "_TOGETHER", BATCH)
    set_(vector_parts, "_PART", PART_SIZE)


@pytest.fixture(scope="module")
def whole(small_parts: None, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """What an uninterrupted build gives."""
    folder = tmp_path_factory.mktemp("whole") / "index"
    encoder = Counting()
    manifest = build(folder, encoder)
    assert encoder.texts == COUNT
    assert not (folder / PART).exists()
    return manifest


def test_an_interrupted_build_goes_on_and_gives_the_same(tmp_path: Path, whole: Manifest) -> None:
    folder = tmp_path / "index"
    interrupted(folder, 9)  # two parts of four batches, and one batch
    assert [path.name for path in folder.iterdir()] == [PART]
    assert len(list((folder / PART).iterdir())) == 2
    with pytest.raises(IndexFolderError, match="its building was interrupted"):
        open_index(folder)
    interrupted(folder, 6)  # one to compare with, one part more
    encoder, told = Counting(), list[int]()
    manifest = build(folder, encoder, told=told)
    assert encoder.texts == COUNT - 3 * PART_SIZE + 1
    assert told[:5] == [COUNT, 3 * PART_SIZE, PART_SIZE, PART_SIZE, PART_SIZE]
    assert sum(told[2:]) == COUNT
    assert manifest.files == whole.files
    assert manifest.content == whole.content
    assert not (folder / PART).exists()


def test_a_killed_build_goes_on_and_gives_the_same(tmp_path: Path, whole: Manifest) -> None:
    folder = tmp_path / "index"
    program = [sys.executable, __file__, str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(program, env=environment).returncode == -signal.SIGKILL
    encoder = Counting()
    assert build(folder, encoder).files == whole.files
    assert encoder.texts == COUNT - 3 * PART_SIZE + 1


def test_vectors_of_other_texts_encoders_or_settings_are_not_taken(
    tmp_path: Path, whole: Manifest
) -> None:
    folder = tmp_path / "index"
    interrupted(folder, 9)

    class Renamed(Counting):
        name = "renamed"

    class Longer(Counting):
        dimension = 27

        def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
            return np.pad(super().encode(texts), ((0, 0), (0, 1)))

    for other in (Renamed(1, interrupt), Longer(1, interrupt)):
        with pytest.raises(KeyboardInterrupt):
            build(folder, other)
    with pytest.raises(KeyboardInterrupt):
        build(folder, Counting(1, interrupt), passages(word="other"))
    interrupted(folder, 1, title=False)
    assert len(list((folder / PART).iterdir())) == 2
    changed = [
        *passages(PART_SIZE),
        *passages(word="other")[PART_SIZE:],
    ]  # the first part is as it was
    encoder = Counting()
    assert build(folder, encoder, changed).files != whole.files
    assert encoder.texts == COUNT - PART_SIZE + 1


def test_vectors_of_another_encoder_of_the_same_name_are_removed(
    tmp_path: Path, whole: Manifest
) -> None:
    class Flipped(Counting):
        def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
            return np.flip(super().encode(texts), 1)

    folder = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        build(folder, Flipped(9, interrupt))
    told: list[int] = []
    assert build(folder, Counting(), told=told).files == whole.files
    assert told[:2] == [COUNT, 0]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"no array at all" * 99])
def test_damaged_vectors_are_made_again(tmp_path: Path, whole: Manifest, content: bytes) -> None:
    folder = tmp_path / "index"
    interrupted(folder, 9)
    next((folder / PART).iterdir()).write_bytes(content)
    encoder = Counting()
    assert build(folder, encoder).files == whole.files
    assert encoder.texts == COUNT - PART_SIZE + 1


def test_an_index_of_another_kind_clears_what_was_left(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    interrupted(folder, 5)
    build_index(folder, passages(6), IndexSettings(), CorpusReport())
    assert not (folder / PART).exists()


def test_an_index_that_is_there_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build(folder, Counting(), passages(6))
    before = files_of(folder)
    with pytest.raises(KeyboardInterrupt):
        build_dense(
            folder,
            passages(),
            IndexSettings(),
            Counting(9, interrupt),
            CorpusReport(),
            overwrite=True,
        )
    assert set(files_of(folder)) > set(before)
    encoder = Counting()
    build_dense(folder, passages(), IndexSettings(), encoder, CorpusReport(), overwrite=True)
    assert encoder.texts == COUNT - 2 * PART_SIZE + 1
    assert len(files_of(folder)) == len(before)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abc", max_size=3), max_size=20), st.integers(0, 6))
def test_wherever_it_stops_the_vectors_are_those_of_the_texts(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], batches: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    expected = [*VectorParts(folder / "a", Counting()).vectors(texts, lambda _: None)]
    told: list[int] = []
    try:
        list(VectorParts(folder / "b", Counting(batches, interrupt)).vectors(texts, told.append))
    except KeyboardInterrupt:
        assert sum(told) == BATCH * batches
    parts = VectorParts(folder / "b", Counting())
    ready = parts.ready(texts)
    found = [*parts.vectors(texts, lambda _: None)]
    assert ready > sum(told) - PART_SIZE
    assert len(found) == len(expected)
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


if __name__ == "__main__":
    make_small(setattr)
    build(Path(sys.argv[1]), Counting(14, kill))
