"""The paper's data sets by name: WikiText-2, and the Pile's ArXiv, FreeLaw and StackExchange.

WikiText-2 has its published splits. The authors cut a Pile subset themselves: `index` is its
validation set and the first 80 % of its test set, `train` the next 10 %, `evaluation` the last.
The files are taken from a folder, or from the Hugging Face hub at a fixed revision, which is asked
for these files only: no code is fetched. The formats of the files are in `paper_formats.py`.
"""

import contextlib
import os
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flashback.corpus.documents import Advance, CorpusReport, Document
from flashback.corpus.paper_formats import (
    Record,
    import_pyarrow,
    read_pile_subset,
    read_wikitext,
)
from flashback.errors import CorpusError


@dataclass(frozen=True)
class Share:
    """A run of the documents of a published split, in percent of their number."""

    split: str
    start: int = 0
    end: int = 100

    @property
    def whole(self) -> bool:
        """Whether it can be read without counting the documents first."""
        return (self.start, self.end) == (0, 100)


@dataclass(frozen=True)
class PaperDataset:
    """A data set of the paper: where it is, how it is cut and how it is read."""

    name: str
    repository: str
    revision: str
    files: dict[str, tuple[str, ...]]
    """Of each published split: its file on the hub, then what else is taken in a folder."""
    parts: dict[str, tuple[Share, ...]]
    """What each part is made of; '': the whole."""
    records: Callable[[Path, CorpusReport, Advance], Iterator[Record]]


@dataclass(frozen=True)
class DataFile:
    """A file of a data set, and which share of its documents is wanted."""

    path: Path
    share: Share

    @property
    def bytes(self) -> int:
        """What reading the share will report to `advance`."""
        return self.path.stat().st_size * (1 if self.share.whole else 2)


def find_data_files(dataset: PaperDataset, part: str, folder: str | None) -> list[DataFile]:
    """Find the files of a part in `folder`; for None, fetch them from the hub or its cache.

    Raises:
        CorpusError: the folder or a file is missing, the hub cannot be reached, or there is no
            pyarrow to read them.
    """

    def path_of(split: str) -> Path:
        return fetch(dataset, split) if folder is None else _file_in(dataset, split, folder)

    files = [DataFile(path_of(share.split), share) for share in dataset.parts[part]]
    if any(file.path.suffix != ".jsonl" for file in files):
        import_pyarrow()  # missed now rather than halfway
    return files


def _file_in(dataset: PaperDataset, split: str, folder: str) -> Path:
    names = dataset.files[split]
    base = Path(os.path.expanduser(folder))  # a shell expands ~ only at the start of a word
    with _readable(dataset.name, base):
        for name in names:
            if (base / name).is_file():
                return base / name
        found = f"no {split} split in {folder}" if base.is_dir() else f"no folder {folder}"
    raise CorpusError(f"corpus {dataset.name}: {found}; expected {' or '.join(names)} there")


def fetch(dataset: PaperDataset, split: str) -> Path:
    """The file of a published split in the hub's cache, downloaded if it is not there."""
    from huggingface_hub import hf_hub_download

    name = dataset.files[split][0]
    try:
        path = hf_hub_download(
            dataset.repository, name, repo_type="dataset", revision=dataset.revision
        )
    except Exception as error:  # the hub's client raises almost anything
        found = textwrap.shorten(str(error) or "no reason given", 300, placeholder=" ...")
        raise CorpusError(
            f"corpus {dataset.name}: {name} of hub data set {dataset.repository} cannot be "
            f"fetched: {found} ({type(error).__name__}); a folder can be named instead, as in "
            f"{dataset.name}@FOLDER"
        ) from error
    return Path(path)


def read_data_files(
    dataset: PaperDataset,
    files: list[DataFile],
    report: CorpusReport,
    advance: Advance = lambda _: None,
) -> Iterator[Document]:
    """Stream the documents; ids count them in their published split, whatever part is read.

    Raises:
        CorpusError: a file is damaged or of another format, or, in strict mode, a record is bad.
    """
    for file in files:
        with _readable(dataset.name, file.path):
            first, last = _bounds(dataset, file, advance)
            for number, title, text in dataset.records(file.path, report, advance):
                if first <= number < last:
                    yield Document(f"{dataset.name}/{file.share.split}/{number}", title, text)


def _bounds(dataset: PaperDataset, file: DataFile, advance: Advance) -> tuple[int, float]:
    if file.share.whole:
        return 0, float("inf")
    count = sum(1 for _ in dataset.records(file.path, CorpusReport(), advance))
    return count * file.share.start // 100, count * file.share.end // 100


@contextlib.contextmanager
def _readable(name: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's are among them
        found = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise CorpusError(f"corpus {name}: {path} cannot be read: {found}") from error


_WIKITEXT = {split: f"{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")}


def _pile(name: str, subset: str) -> PaperDataset:
    return PaperDataset(
        name,
        "EleutherAI/pile_val_test",
        "05b327037e6301f256d8df32193756edc4c8e3bd",
        {
            "validation": ("val.jsonl", "val.jsonl.zst"),
            "test": ("test.jsonl", "test.jsonl.zst"),
        },
        {
            "index": (Share("validation"), Share("test", 0, 80)),
            "train": (Share("test", 80, 90),),
            "evaluation": (Share("test", 90, 100),),
            "": (Share("validation"), Share("test")),
        },
        partial(read_pile_subset, subset),
    )


PAPER_DATASETS = {
    dataset.name: dataset
    for dataset in (
        PaperDataset(
            "wikitext-2",
            "Salesforce/wikitext",
            "b08601e04326c79dfdd32d625aee71d232d685c3",
            {split: (f"wikitext-2-raw-v1/{file}", file) for split, file in _WIKITEXT.items()},
            {split: (Share(split),) for split in _WIKITEXT} | {"": tuple(map(Share, _WIKITEXT))},
            read_wikitext,
        ),
        _pile("pile-arxiv", "ArXiv"),
        _pile("pile-freelaw", "FreeLaw"),
        _pile("pile-stackexchange", "StackExchange"),
    )
}
