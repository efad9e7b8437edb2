"""A kill while an index changes leaves the version before or the one after, and a whole one."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import NoReturn

import pytest

from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.errors import IndexFolderError
from flashback.retrieval.bm25 import BM25Index, IndexSettings, build_index
from flashback.retrieval.changes import changing, merge
from flashback.retrieval.index_folder import read_manifest, verify
from flashback.retrieval.live import LiveIndex
from flashback.settings import SearchOptions

DOCUMENTS, CHANGED = 300, 40

STEPS = {
    "flashback.retrieval.index_folder.fresh_folder": "old",
    "os.link": "old",
    "flashback.retrieval.changes.Spool": "old",
    "flashback.retrieval.changes.writing": "old",
    "flashback.retrieval.changes.write_records": "old",
    "flashback.retrieval.changes.publish": "old",
    "flashback.retrieval.index_folder.sync_files": "old",
    "os.fsync": "old",
    "os.replace": "old",
    "flashback.retrieval.index_folder._clear_debris": "new",
    "shutil.rmtree": "new",
}
"""What a writer calls, in this order, and which version is there if it is killed then."""


def passages(mark: str, count: int) -> Iterator[Passage]:
    rng = random.Random(mark)
    for n in range(count):
        text = " ".join([mark, *(f"word{rng.randrange(900)}" for _ in range(9))])
        yield Passage(f"{n}#0", str(n), "", text)


def change(folder: Path, mark: str) -> None:
    """Replace some documents by others, which have a mark."""
    with changing(folder) as changes:
        changes.delete(map(str, range(CHANGED)))
        changes.add(passages(mark, CHANGED))
        changes.commit()


def mark_of(folder: Path) -> str:
    """The mark of the documents that were changed last, of a whole index."""
    verify(folder)
    index = BM25Index.open(folder)
    assert len(index) == DOCUMENTS
    found = dict(
        zip(("old", "new"), index.search(["old", "new"], SearchOptions(k=999)), strict=True)
    )
    [mark] = [mark for mark, hits in found.items() if hits]
    assert len(found[mark]) == CHANGED
    return mark


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_index(tmp_path, passages("first", DOCUMENTS), IndexSettings(), CorpusReport())
    change(tmp_path, "old")
    return tmp_path


def run_writer(folder: Path, action: str, step: str) -> None:
    """Run a writer that kills itself when it calls `step`."""
    command = [sys.executable, __file__, str(folder), action, step]
    assert subprocess.run(command, timeout=120, check=False).returncode == -signal.SIGKILL


def check_that_it_can_be_changed(folder: Path) -> None:
    """And that debris goes: only the manifest and its data are left."""
    change(folder, "new")
    assert mark_of(folder) == "new"
    assert {path.name for path in folder.iterdir()} == {
        "flashback-index.json",
        read_manifest(folder).data,
    }


@pytest.mark.parametrize(("step", "left"), STEPS.items())
def test_a_kill_at_every_step_leaves_the_old_version_or_the_new(
    folder: Path, step: str, left: str
) -> None:
    run_writer(folder, "change", step)
    assert mark_of(folder) == left
    check_that_it_can_be_changed(folder)


@pytest.mark.parametrize(
    "step",
    [
        "flashback.retrieval.changes.write_records",
        "flashback.retrieval.index_folder.sync_files",
        "os.replace",
        "shutil.rmtree",
    ],
)
def test_a_kill_while_merging_changes_nothing(folder: Path, step: str) -> None:
    run_writer(folder, "merge", step)
    assert mark_of(folder) == "old"
    check_that_it_can_be_changed(folder)


def test_a_full_disk_leaves_the_version_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    before = sorted(folder.rglob("*"))
    for name in ("os.fsync", "flashback.retrieval.index_folder.fresh_folder"):
        with monkeypatch.context() as patched:
            patched.setattr(name, refuse)
            with pytest.raises(IndexFolderError, match="cannot be written: No space left"):
                change(folder, "new")
            with pytest.raises(IndexFolderError, match="cannot be written: No space left"):
                merge(folder)
        assert sorted(folder.rglob("*")) == before
    assert mark_of(folder) == "old"


def test_readers_see_whole_versions_while_a_writer_changes_and_merges(folder: Path) -> None:
    done = threading.Event()
    live = LiveIndex(folder)
    failures: list[BaseException] = []

    def look(search: Callable[[], BM25Index | LiveIndex]) -> None:
        try:
            while not done.is_set():
                [old, new] = search().search(["old", "new"], SearchOptions(k=999))
                assert sorted((len(old), len(new))) == [0, CHANGED]
        except BaseException as error:
            failures.append(error)

    def renewed() -> LiveIndex:
        live.renew()
        return live

    looks = (renewed, lambda: BM25Index.open(folder))
    threads = [threading.Thread(target=look, args=[one]) for one in looks]
    for thread in threads:
        thread.start()
    for number in range(8):
        change(folder, "new" if number % 2 else "old")
        if number % 3 == 0:
            merge(folder)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, action: str, step: str) -> None:
    """Change an index, dying at a step."""
    holder, _, name = step.rpartition(".")
    setattr(resolve_name(holder), name, _die)
    if action == "merge":
        merge(Path(folder))
    else:
        change(Path(folder), "new")


if __name__ == "__main__":
    main(*sys.argv[1:])
