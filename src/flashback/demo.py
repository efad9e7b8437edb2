"""The main job on real text, with nothing but what the package and its environment hold.

Indexes `python-docs` without its held-out pages, then continues a held-out page three times, each
from an empty cache: appended, prepended, without retrieval.
"""

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from platformdirs import user_cache_path

import flashback
from flashback.corpus.python_docs import NAME, find_modules, read_module
from flashback.engines.local import LocalEngine
from flashback.errors import CorpusError, IndexFolderError
from flashback.generation import Event, Generation, Generator
from flashback.indexing import ProgressStart, index_corpus
from flashback.retrieval.bm25 import BM25Index
from flashback.settings import (
    Pattern,
    RetrievalSettings,
    SamplingSettings,
    Settings,
    StoppingSettings,
)

PAGE = "logging.handlers"
"""A documentation page that every Python has and no training or index has seen."""


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
        return self.of(Pattern.APPEND).retrieval.stride

    def of(self, pattern: Pattern) -> Settings:
        """The same settings for every pattern."""
        return Settings(
            RetrievalSettings(pattern=pattern),
            self.sampling,
            StoppingSettings(max_new_tokens=self.new_tokens, ignore_eos=True),
        )


def index_folder() -> Path:
    """Where the demo keeps its index: in the user's cache, one per environment."""
    installed = sorted(f"{item.name}=={item.version}" for item in distributions())
    identity = "\n".join([platform.python_version(), flashback.__version__, *installed])
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return user_cache_path("flashback") / f"{NAME}-{name}"


def open_or_build_index(progress: ProgressStart) -> tuple[BM25Index, bool]:
    """The index of this environment's documentation, and whether it had to be built.

    Args:
        progress: see `index_corpus`.

    Raises:
        FlashBackError: the cache folder cannot be written.
    """
    folder = index_folder()
    try:
        return BM25Index.open(folder), False
    except IndexFolderError:
        index_corpus([f"{NAME}:train"], folder, overwrite=True, progress=progress)
        return BM25Index.open(folder), True


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

    def __init__(self, writer: Generator, engine: LocalEngine, settings: DemoSettings) -> None:
        self._writer = writer
        self._engine = engine
        self.settings = settings
        ids = writer.reader.encode_prompt(held_out_page())
        self.prompt = ids[: settings.prompt_tokens]
        self.results: dict[Pattern, Generation] = {}

    @property
    def prompt_end(self) -> str:
        """The last few lines of the prompt."""
        text = self._writer.reader.decode(self.prompt).rstrip()
        return "\n".join(text.splitlines()[-4:])

    def warm_up(self) -> None:
        """Let libraries allocate and tune themselves before anything is timed."""
        settings = Settings(RetrievalSettings(), stopping=StoppingSettings(max_new_tokens=17))
        self._writer.generate(self.prompt, settings)

    def run(self, pattern: Pattern) -> Iterator[Event]:
        """Write with one pattern; its result is in `results` afterwards."""
        self._engine.forget()
        writing = self._writer.stream(self.prompt, self.settings.of(pattern))
        yield from writing
        self.results[pattern] = writing.result
