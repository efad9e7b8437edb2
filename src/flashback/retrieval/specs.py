"""Retrievers by name: what `--retriever SPEC` and `load(retriever="SPEC")` take.

A SPEC is one of

    scheme://...                    a store or server whose scheme is in `SCHEMES`
    package.module:factory          anybody's Python, called without arguments
    package.module:factory=TEXT     the same, called with a text
    NAME, NAME=TEXT                 a name of `NAMES`, or an entry point of `flashback.retrievers`

A new store is one file, its tests of the contract, and a line here.
"""

import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashback.declared import Registry
from flashback.errors import FlashBackError, SettingsError
from flashback.retrieval.frameworks import retriever_of
from flashback.retrieval.fusion import FusedRetriever, FusionSettings
from flashback.retrieval.kinds import open_index
from flashback.retrieval.milvus import MilvusRetriever
from flashback.retrieval.postgres import PostgresRetriever
from flashback.retrieval.protocol import Retriever
from flashback.retrieval.qdrant import QdrantRetriever
from flashback.retrieval.remote import HttpRetriever
from flashback.retrieval.rerank import READER, RerankSettings, reranked

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "flashback.retrievers"
"""The entry points that name retrievers: a factory each."""
_URL = re.compile(r"([a-z][a-z0-9.+-]*)://", re.IGNORECASE)
_PASSWORD = re.compile(r"(://[^/?#@:]*):[^/?#]*@")

SCHEMES: Registry[Callable[[str], Retriever]] = Registry("retriever scheme")
"""By the part of a URL before `://`: opens the URL."""
NAMES: Registry[Callable[[str], Retriever]] = Registry("retriever")
"""By name: opens what stands behind `NAME=`."""

NAMES.register("index", open_index)
SCHEMES.register("http", HttpRetriever.open)
SCHEMES.register("https", HttpRetriever.open)
SCHEMES.register("postgresql", PostgresRetriever)
SCHEMES.register("milvus+http", MilvusRetriever)
SCHEMES.register("milvus+https", MilvusRetriever)
SCHEMES.register("qdrant+http", QdrantRetriever.open)
SCHEMES.register("qdrant+https", QdrantRetriever.open)


@dataclass(frozen=True)
class RetrieverSpec:
    """A retriever that was asked for and not opened yet."""

    text: str

    def __str__(self) -> str:
        """For people and records: without a URL's password."""
        return _PASSWORD.sub(r"\1:***@", self.text)

    @property
    def is_python(self) -> bool:
        """Whether it names a module."""
        return _URL.match(self.text) is None and ":" in self.text.partition("=")[0]


def open_retriever(spec: str) -> Retriever:
    """The retriever that a SPEC names.

    Python that a SPEC names is run. What a factory gives is anything that `retriever_of` takes.

    Raises:
        SettingsError: there is no such scheme, name, module or attribute, or what its factory gives
            is no retriever.
        FlashBackError: it cannot be opened.
    """
    shown = f"--retriever={str(RetrieverSpec(spec))!r}"
    if scheme := _URL.match(spec):
        return _open_url(scheme[1].lower(), spec, shown)
    name, equals, argument = spec.partition("=")
    if name in NAMES:
        if not argument:
            raise SettingsError(f"{shown}: expected a text behind it: {name}=...")
        return NAMES[name](argument)
    return _made(_factory(name, shown), (argument,) if equals else (), shown)


@dataclass(frozen=True)
class CombinedSource:
    """Index folders and retrievers that are fused, and what ranks anew what they find."""

    parts: tuple[str | Path | RetrieverSpec, ...]
    fusion: FusionSettings = FusionSettings()
    rerank: RerankSettings = RerankSettings()

    def __str__(self) -> str:
        """For people and records."""
        fused = " + ".join(map(str, self.parts))
        weights = f" ({self.fusion.fusion_weights})" if self.fusion.fusion_weights else ""
        reranked = f", reranked by {self.rerank.reranker}" if self.rerank.reranker else ""
        return f"{fused}{weights}{reranked}"


def open_source(source: str | Path | RetrieverSpec | CombinedSource) -> Retriever:
    """An index folder, a SPEC or several, opened; see `open_index` and `open_retriever`.

    Raises:
        SettingsError: a SPEC or the weights are wrong, or the reranker is the reader, which is
            known to `load` alone.
        FlashBackError: something cannot be opened.
    """
    if isinstance(source, CombinedSource):
        if source.rerank.reranker == READER:
            raise SettingsError(
                "--reranker='reader': this command searches before its reader is loaded; expected "
                "a cross-encoder"
            )
        return reranked(open_fused(source), source.rerank)
    return open_retriever(source.text) if isinstance(source, RetrieverSpec) else open_index(source)


def open_fused(source: CombinedSource) -> Retriever:
    """The same without what ranks anew; see `open_source`."""
    source.fusion.weights(len(source.parts))  # before anything is opened
    opened = [open_source(part) for part in source.parts]
    return opened[0] if len(opened) == 1 else FusedRetriever(opened, source.fusion)


def _open_url(scheme: str, url: str, shown: str) -> Retriever:
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise SettingsError(f"{shown}: unknown scheme {scheme}://; expected one of {known}")
    return SCHEMES[scheme](url)


def _factory(name: str, shown: str) -> Any:
    """What a module or an entry point has under a name."""
    if ":" in name:
        return _loaded(lambda: pkgutil.resolve_name(name), name.partition(":")[0], shown)
    from importlib.metadata import entry_points  # it takes a while, also for --help

    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        raise SettingsError(
            f"{shown}: there is no retriever of that name; expected package.module:factory, a URL "
            f"or one of {', '.join([*NAMES, *sorted(found)])} (an index folder: index=FOLDER)"
        )
    return _loaded(found[name].load, _module(found[name]), shown)


def _module(point: "EntryPoint") -> str:
    return point.value.partition(":")[0]


def _loaded(load: Callable[[], Any], module: str, shown: str) -> Any:
    """Import something.

    Raises:
        SettingsError: saying in one line why not.
    """
    try:
        return load()
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise SettingsError(f"{shown}: there is no module {error.name}") from None
        raise SettingsError(f"{shown}: {module} needs {error.name}; install it") from error
    except AttributeError as error:
        raise SettingsError(f"{shown}: {error}") from error
    except Exception as error:  # whatever somebody's module does when it is imported
        raise SettingsError(f"{shown}: {module} cannot be imported: {_line(error)}") from error


def _made(factory: Any, arguments: tuple[str, ...], shown: str) -> Retriever:
    """What a factory gives, as a retriever."""
    if not callable(factory):
        raise SettingsError(
            f"{shown}: found a {type(factory).__name__}; expected a function or a class"
        )
    try:
        made = factory(*arguments)
    except FlashBackError:
        raise
    except Exception as error:  # whatever somebody's factory does
        raise SettingsError(f"{shown}: it could not be made: {_line(error)}") from error
    try:
        return retriever_of(made)
    except SettingsError:
        raise SettingsError(
            f"{shown}: its factory gave a {type(made).__name__}; expected an object with "
            "search(queries, options), or a retriever of LangChain, LlamaIndex or Haystack"
        ) from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
