"""An index stays whole when its builder is killed at any moment, or the disk is full.

Run as a program, this file is the builder that the tests kill.
"""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest

from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.errors import IndexFolderError
from flashback.files import folder_locked
from flashback.retrieval.bm25 import BM25Index, IndexSettings, build_index
from flashback.retrieval.index_folder import MANIFEST, verify
from flashback.settings import SearchOptions

PASSAGES = 3000

STEPS = {
    "flashback.retrieval.index_folder.fresh_folder": "old",
    "flashback.retrieval.index_folder.sync_files": "old",
    "os.fsync": "old",
    "tempfile.mkstemp": "old",
    "os.replace": "old",
    "flashback.retrieval.index_folder._clear_debris": "new",
    "shutil.rmtree": "new",
}
"""What a builder calls, in this order, and which index is there if it is killed then."""


def made_up_passages(word: str, count: int) -> Iterator[Passage]:
    rng = random.Random(word)
    for n in range(count):
        text = " ".join([word, *(f"word{rng.randrange(9000)}" for _ in range(40))])
        yield Passage(f"{n}#0", str(n), f"Title {n}", text)


def build(folder: Path, word: str, count: int = PASSAGES, *, overwrite: bool = True) -> None:
    """Make an index all of whose passages have `word`."""
    passages = made_up_passages(word, count)
    build_index(folder, passages, IndexSettings(), CorpusReport(), overwrite=overwrite)


def content(folder: Path) -> tuple[str, int]:
    """The word and the number of passages of a whole index."""
    verify(folder)
    index = BM25Index.open(folder)
    old, new = index.search(["old", "new"], SearchOptions(k=PASSAGES))
    assert not old or not new
    assert len(old or new) == len(index)
    return "old" if old else "new", len(index)


def whole_or_refused(folder: Path) -> bool:
    try:
        found = content(folder)
    except IndexFolderError:
        return False
    assert found == ("new", PASSAGES)
    return True


def check_that_debris_is_cleared(folder: Path) -> None:
    """By the next build, which needs no --overwrite where the first never finished."""
    build(folder, "new", 5, overwrite=(folder / MANIFEST).exists())
    assert content(folder) == ("new", 5)
    assert len(list(folder.iterdir())) == 2


def run_builder(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start a builder of an index of the word "new"; it writes a line when it begins."""
    command = [sys.executable, __file__, str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_after(folder: Path, seconds: float) -> float:
    """Kill a builder so long after it began; return how long it lived, which may be less."""
    with run_builder(folder) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "building\n"
        began = time.monotonic()
        try:
            builder.wait(seconds)
        except subprocess.TimeoutExpired:
            builder.kill()
            builder.wait()
        return time.monotonic() - began


@pytest.fixture(scope="module")
def duration(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds that a build takes here and now, so that kills fall within it."""
    folder = tmp_path_factory.mktemp("whole")
    seconds = kill_after(folder, 120)
    assert content(folder) == ("new", PASSAGES)
    return seconds


def test_a_kill_at_any_moment_leaves_the_old_index_or_the_new(
    tmp_path: Path, duration: float
) -> None:
    rng = random.Random(0)
    build(tmp_path, "old", 500)
    for _ in range(8):
        kill_after(tmp_path, rng.uniform(0, 1.1) * duration)
        if content(tmp_path) != ("old", 500):
            assert content(tmp_path) == ("new", PASSAGES)
            build(tmp_path, "old", 500)
    check_that_debris_is_cleared(tmp_path)


def test_a_kill_during_the_first_build_leaves_a_refused_folder_or_a_whole_index(
    tmp_path: Path, duration: float
) -> None:
    rng = random.Random(1)
    for n in range(4):
        folder = tmp_path / str(n)
        kill_after(folder, rng.uniform(0, 1.1) * duration)
        whole_or_refused(folder)
        check_that_debris_is_cleared(folder)


def kill_at(folder: Path, step: str) -> None:
    with run_builder(folder, step) as builder:
        builder.communicate(timeout=120)
        assert builder.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("step", "left"), STEPS.items())
def test_a_kill_at_every_step_leaves_the_old_index_or_the_new(
    tmp_path: Path, step: str, left: str
) -> None:
    build(tmp_path, "old", 500)
    kill_at(tmp_path, step)
    assert content(tmp_path) == (left, 500 if left == "old" else PASSAGES)
    check_that_debris_is_cleared(tmp_path)


@pytest.mark.parametrize(("step", "left"), list(STEPS.items())[:-1])  # nothing to remove yet
def test_a_kill_at_every_step_of_the_first_build_is_no_obstacle(
    tmp_path: Path, step: str, left: str
) -> None:
    kill_at(tmp_path, step)
    assert whole_or_refused(tmp_path) == (left == "new")
    check_that_debris_is_cleared(tmp_path)


@pytest.mark.parametrize("nth", range(1, 22))
def test_an_interrupt_at_any_sync_leaves_the_old_index_or_the_new_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """Unlike a kill, Ctrl-C runs the clean-up: it must not clear what was just published."""
    build(tmp_path, "old", 500)
    sync, calls = os.fsync, 0

    def interrupted(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise KeyboardInterrupt
        sync(handle)

    monkeypatch.setattr(os, "fsync", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        build(tmp_path, "new", 700)
    monkeypatch.undo()
    assert content(tmp_path) in (("old", 500), ("new", 700))
    assert len(list(tmp_path.iterdir())) == 2


def test_two_builders_do_not_disturb_each_other(tmp_path: Path) -> None:
    with folder_locked(tmp_path) as ours:
        assert ours
        with pytest.raises(IndexFolderError, match="another process is building or changing it"):
            build(tmp_path, "new", 100)
    build(tmp_path, "new", 100)
    assert content(tmp_path) == ("new", 100)


LIMITS = [100, 2_000, 20_000, 100_000]
"""Bytes a file may have, instead of a full disk: the first write fails, or a later one."""


def fail_to_build(folder: Path, limit: int) -> None:
    with run_builder(folder, str(limit)) as builder:
        began, *message = builder.communicate(timeout=120)[0].splitlines()
    assert began == "building"
    assert len(message) == 1
    assert message[0].startswith(f"IndexFolderError: index {folder} cannot be written: ")


@pytest.mark.parametrize("limit", LIMITS)
def test_a_full_disk_leaves_nothing_of_a_first_build(tmp_path: Path, limit: int) -> None:
    fail_to_build(tmp_path / "IDX", limit)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", LIMITS)
def test_a_full_disk_leaves_the_old_index(tmp_path: Path, limit: int) -> None:
    build(tmp_path, "old", 500)
    before = sorted(tmp_path.rglob("*"))
    fail_to_build(tmp_path, limit)
    assert sorted(tmp_path.rglob("*")) == before
    assert content(tmp_path) == ("old", 500)


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, limit_or_step: str = "") -> None:
    """Build over what is in `folder`, with files limited in size, or dying at a step."""
    print("building", flush=True)
    if limit_or_step.isdecimal():
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit_or_step),) * 2)
    elif limit_or_step:
        holder, _, name = limit_or_step.rpartition(".")
        setattr(resolve_name(holder), name, _die)
    try:
        build(Path(folder), "new")
    except IndexFolderError as error:
        print(f"IndexFolderError: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
