"""The demonstration: writing and scoring real text with the shipped reader alone.

Indexes `python-docs` without its held-out pages, then continues a held-out page four times, each
from an empty cache: appended, in a slot, prepended, without retrieval. In the end it scores a few
held-out pages with every pattern, and with the adapter that reads appended passages.
"""

import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from flashback.corpus.documents import Document
from flashback.corpus.python_docs import NAME, find_modules, read_module
from flashback.corpus.split import split_of
from flashback.engines.local import LocalEngine
from flashback.errors import CorpusError, IndexFolderError
from flashback.evaluation.adapted_readers import AdaptedReaders
from flashback.evaluation.arms import FrameKind, adapter_arms, untrained_arms
from flashback.evaluation.evaluate import EvaluationSet, StartScoring, evaluate
from flashback.patterns.registry import PATTERNS
from flashback.readers.adapted import adapter_folder, load_adapted
from flashback.readers.inference import for_inference
from flashback.readers.load import MINI, load_reader, load_token_ends
from flashback.readers.reader import Reader
from flashback.retrieval.indexing import ProgressStart, index_corpus
from flashback.retrieval.kinds import Index, open_index
from flashback.scoring.retrieved_windows import cut_and_retrieve
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RetrievalSettings, SamplingSettings, Settings, StoppingSettings
from flashback.version import __version__
from flashback.writing.generator import Event, Generation, Generator

PAGE = "logging.handlers"
"""A documentation page that every Python has and no training or index has seen."""
SCORED_PAGES = 6
"""Held-out pages of the standard library whose beginnings are scored."""
_LONG_PAGE = 2000
"""Characters."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demo writes."""

    prompt_tokens: int = 1024
    """The beginning of the page, tokens."""
    new_tokens: int = 128
    sampling: SamplingSettings = SamplingSettings(temperature=0.8, top_p=0.9, seed=1)

    @property
    def stride(self) -> int:
        """Tokens between two retrievals."""
        return self.of("append").retrieval.stride

    def of(self, pattern: str) -> Settings:
        """The same settings for every pattern."""
        return Settings(
            RetrievalSettings(pattern=pattern),
            self.sampling,
            StoppingSettings(max_new_tokens=self.new_tokens, ignore_eos=True),
        )


def index_folder() -> Path:
    """Where the demo keeps its index: in the user's cache, one per environment."""
    installed = sorted(f"{item.name}=={item.version}" for item in distributions())
    identity = "\n".join([platform.python_version(), __version__, *installed])
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return user_cache_path("flashback") / f"{NAME}-{name}"


def open_or_build_index(progress: ProgressStart) -> tuple[Index, bool]:
    """The index of this environment's documentation, and whether it had to be built.

    Args:
        progress: see `index_corpus`.

    Raises:
        FlashBackError: the cache folder cannot be written.
    """
    folder = index_folder()
    try:
        return open_index(folder), False
    except IndexFolderError:
        ends = load_token_ends(MINI)
        names = [f"{NAME}:train"]
        index_corpus(names, folder, overwrite=True, progress=progress, token_ends=ends)
        return open_index(folder), True


def held_out_page() -> str:
    """The text of the page that is continued.

    Raises:
        CorpusError: this Python was installed without it.
    """
    path = dict(find_modules()).get(PAGE)
    document = read_module((PAGE, path)) if path else None
    if document is None:
        raise CorpusError(f"this Python has no documentation strings for {PAGE}")
    return f"{document.title}\n\n{document.text}"


class Demo:
    """Continues the held-out page with different patterns, each from an empty cache."""

    def __init__(self, index: Index, settings: DemoSettings) -> None:
        self._index = index
        self.settings = settings
        self._writers: dict[str, tuple[Generator, LocalEngine]] = {}
        self._reader = self._writer("append")[0].reader
        self.prompt = self._reader.encode_prompt(held_out_page())[: settings.prompt_tokens]
        self.results: dict[str, Generation] = {}

    def _writer(self, pattern: str) -> tuple[Generator, LocalEngine]:
        """A reader with the adapter that ships for the pattern, and its engine."""
        if pattern not in self._writers:
            reader = for_inference(
                load_adapted(MINI, pattern=pattern, device="cpu", dtype="float32")
            )
            engine = LocalEngine(reader.model, reader.window)
            self._writers[pattern] = Generator(reader, engine, self._index), engine
        return self._writers[pattern]

    @property
    def prompt_end(self) -> str:
        """The last few lines of the prompt."""
        text = self._reader.decode(self.prompt).rstrip()
        return "\n".join(text.splitlines()[-4:])

    def warm_up(self) -> None:
        """Let libraries allocate and tune themselves before anything is timed."""
        for pattern in PATTERNS:
            settings = Settings(
                RetrievalSettings(pattern), stopping=StoppingSettings(max_new_tokens=17)
            )
            self._writer(pattern)[0].generate(self.prompt, settings)

    def run(self, pattern: str) -> Iterator[Event]:
        """Write with one pattern; its result is in `results` afterwards."""
        writer, engine = self._writer(pattern)
        engine.forget()
        writing = writer.stream(self.prompt, self.settings.of(pattern))
        yield from writing
        self.results[pattern] = writing.result


def load_plain() -> Reader:
    """The shipped reader without an adapter, where figures are comparable."""
    return load_reader(MINI, device="cpu", dtype="float32")


def scored_pages() -> list[Document]:
    """Some pages of the standard library that no training and no index has seen.

    Raises:
        CorpusError: this Python was installed without them.
    """
    library = Path(sysconfig.get_paths()["stdlib"]).resolve()
    pages: list[Document] = []
    for name, path in find_modules():
        if split_of(name) == "evaluation" and path.is_relative_to(library) and name != PAGE:
            document = read_module((name, path))
            if document is not None and len(document.text) > _LONG_PAGE:
                pages.append(document)
    if not pages:
        raise CorpusError("this Python has no documentation strings of the held-out modules")
    return sorted(pages, key=lambda page: len(page.text))[-SCORED_PAGES:]


def score_patterns(index: Index, start: StartScoring) -> dict[str, Any]:
    """Perplexity on a window of each page: every pattern, and appended with the adapter.

    Args:
        index: passages of the pages themselves and copies of them are not used.
        start: see `evaluate`.

    Returns:
        the table's record, as `flashback eval --json` prints it.
    """
    readers = AdaptedReaders(load_plain)
    retrieval, windows = RetrievalSettings(), WindowSettings()
    found = cut_and_retrieve(scored_pages(), readers.get(), index, [retrieval], windows)[0]
    first = found.first_windows()
    pages = EvaluationSet(tuple(first.examples(readers.get(), retrieval)), first.found, windows)
    arms = untrained_arms(list(PATTERNS), [FrameKind.TEXT])
    adapter = adapter_folder(MINI, "auto")
    if adapter is not None:
        arms += adapter_arms(adapter, ["append"])
    return evaluate(arms, [pages], readers, start=start)[0].record()
