"""FlashBack: retrieval-augmented language modeling that does not waste the KV cache.

Liu et al., Findings of ACL 2025, arXiv 2405.04065.

    import flashback

    writer = flashback.load("flashback-mini", index="IDX")
    print(writer.generate("The json module").text)
"""

import warnings
from enum import StrEnum
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from flashback.declared import AUTO
from flashback.patterns.registry import PATTERNS
from flashback.version import __version__ as __version__

if TYPE_CHECKING:
    from flashback.corpus.formats.file_settings import FileSettings
    from flashback.corpus.place import Place
    from flashback.engines.local import LocalEngine
    from flashback.engines.openai_settings import RemoteSettings
    from flashback.engines.protocol import Engine, Usage
    from flashback.errors import FlashBackError
    from flashback.loading import load
    from flashback.readers.load import load_reader
    from flashback.readers.reader import Reader
    from flashback.retrieval.bm25 import BM25Index, IndexSettings
    from flashback.retrieval.fusion import FusionSettings
    from flashback.retrieval.index_settings import DenseSettings
    from flashback.retrieval.indexing import index_corpus
    from flashback.retrieval.protocol import Hit, Retriever
    from flashback.retrieval.rerank import RerankSettings
    from flashback.retrieval.updating import (
        Synced,
        add_documents,
        delete_documents,
        merge_index,
        sync_index,
    )
    from flashback.retrieval.writable import WritableIndex
    from flashback.settings import (
        FrameText,
        RetrievalSettings,
        SamplingSettings,
        SearchOptions,
        Settings,
        StoppingSettings,
    )
    from flashback.writing.generator import (
        Generation,
        Generator,
        Stride,
        StrideStart,
        TextPiece,
        Writing,
    )


__all__ = [
    "BM25Index",
    "DenseSettings",
    "Engine",
    "FileSettings",
    "FlashBackError",
    "FrameText",
    "FusionSettings",
    "Generation",
    "Generator",
    "Hit",
    "IndexSettings",
    "LocalEngine",
    "Place",
    "Reader",
    "RemoteSettings",
    "RerankSettings",
    "RetrievalSettings",
    "Retriever",
    "SamplingSettings",
    "SearchOptions",
    "Settings",
    "StoppingSettings",
    "Stride",
    "StrideStart",
    "Synced",
    "TextPiece",
    "Usage",
    "WritableIndex",
    "Writing",
    "add_documents",
    "delete_documents",
    "index_corpus",
    "load",
    "load_reader",
    "merge_index",
    "sync_index",
]

_MODULES = {
    "corpus.formats.file_settings": ("FileSettings",),
    "corpus.place": ("Place",),
    "engines.local": ("LocalEngine",),
    "engines.openai_settings": ("RemoteSettings",),
    "errors": ("FlashBackError",),
    "engines.protocol": ("Engine", "Usage"),
    "writing.generator": (
        "Generation",
        "Generator",
        "Stride",
        "StrideStart",
        "TextPiece",
        "Writing",
    ),
    "retrieval.indexing": ("index_corpus",),
    "retrieval.updating": (
        "Synced",
        "add_documents",
        "delete_documents",
        "merge_index",
        "sync_index",
    ),
    "retrieval.writable": ("WritableIndex",),
    "loading": ("load",),
    "readers.load": ("load_reader",),
    "readers.reader": ("Reader",),
    "retrieval.bm25": ("BM25Index", "IndexSettings"),
    "retrieval.index_settings": ("DenseSettings",),
    "retrieval.fusion": ("FusionSettings",),
    "retrieval.rerank": ("RerankSettings",),
    "retrieval.protocol": ("Hit", "Retriever"),
    "settings": (
        "FrameText",
        "RetrievalSettings",
        "SamplingSettings",
        "SearchOptions",
        "Settings",
        "StoppingSettings",
    ),
}


def __getattr__(name: str) -> object:
    # PyTorch takes seconds to import; `flashback --help` and `flashback search` do without it.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"flashback.{module}"), name)
    if name == "Pattern":
        return _deprecated_pattern()
    raise AttributeError(f"module 'flashback' has no attribute {name!r}")


def _deprecated_pattern() -> object:
    """Deprecated: the names of the context patterns as an enumeration."""
    warnings.warn(
        "flashback.Pattern is deprecated: settings take a pattern's name, such as 'append'; the "
        "patterns themselves are flashback.patterns.registry.PATTERNS",
        DeprecationWarning,
        stacklevel=3,
    )
    return _pattern_names(tuple(PATTERNS))


class _PatternName(StrEnum):
    @property
    def retrieves(self) -> bool:
        """Whether the pattern has passages."""
        return self == AUTO or PATTERNS[self].retrieves


@cache
def _pattern_names(names: tuple[str, ...]) -> object:
    # mypy takes a call of an enumeration for the choice of a member.
    return _PatternName("Pattern", [(name.upper(), name) for name in (AUTO, *names)])  # type: ignore[call-arg]
