"""Retrievers of other people: an object with `search`, LangChain's, LlamaIndex's, Haystack's.

They are told apart by what they can do, so no framework is imported here.
"""

import inspect
import reprlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flashback.errors import SettingsError
from flashback.retrieval.protocol import Hit, Retriever
from flashback.settings import SearchOptions

_TITLES = ("title", "Title", "file_name")
_SOURCES = ("source", "file_path", "file_name", "url")
"""Where their loaders keep a document's title and name."""


def retriever_of(found: Any) -> Retriever:
    """Somebody's retriever as one of ours.

    Args:
        found: an object with `search` as `Retriever` has it; a retriever of LangChain
            (`BaseRetriever`), LlamaIndex (`BaseRetriever`) or Haystack (a component whose `run`
            takes a query as text); or what makes one by `as_retriever()`, such as their vector
            stores and indexes.

    Raises:
        SettingsError: it is none of these.
    """
    if hasattr(found, "__haystack_input__"):
        return HaystackRetriever(found)
    if callable(getattr(found, "as_retriever", None)):
        found = found.as_retriever()
    if callable(getattr(found, "retrieve", None)):
        return LlamaIndexRetriever(found)
    if callable(getattr(found, "batch", None)) and callable(getattr(found, "invoke", None)):
        return LangChainRetriever(found)
    if not isinstance(found, type) and _takes(getattr(found, "search", None)):
        own: Retriever = found
        return own
    raise SettingsError(
        f"retriever={reprlib.repr(found)}: expected an object with search(queries, options), or a "
        "retriever of LangChain, LlamaIndex or Haystack"
    )


def _takes(search: object) -> bool:
    """Whether a method can be called with queries and options."""
    return callable(search) and _binds(search, [], SearchOptions())


def _binds(method: Callable[..., object], *arguments: object, **named: object) -> bool:
    try:
        inspect.signature(method).bind(*arguments, **named)
    except ValueError:  # one that is not written in Python may say nothing
        return True
    except TypeError:
        return False
    return True


class LangChainRetriever:
    """A `BaseRetriever` of LangChain. How many passages it finds at most is its own setting."""

    def __init__(self, retriever: Any) -> None:
        """Take a retriever."""
        self._retriever = retriever

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`. Scores are `relevance_score` of the metadata, or all 1."""
        found = self._retriever.batch(list(queries))
        return [_allowed(map(self._hit, documents), options) for documents in found]

    def _hit(self, document: Any) -> Hit:
        score = document.metadata.get("relevance_score", 1.0)
        return _hit(document.page_content, document.metadata, document.id, None, float(score))


class LlamaIndexRetriever:
    """A `BaseRetriever` of LlamaIndex. How many passages it finds at most is its own setting."""

    def __init__(self, retriever: Any) -> None:
        """Take a retriever."""
        self._retriever = retriever

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`. A node without a score has 1."""
        found = (self._retriever.retrieve(query) for query in queries)
        return [_allowed(map(self._hit, nodes), options) for nodes in found]

    def _hit(self, found: Any) -> Hit:
        node = found.node
        score = 1.0 if found.score is None else float(found.score)
        return _hit(node.get_content(), node.metadata, node.node_id, node.ref_doc_id, score)


class HaystackRetriever:
    """A component of Haystack that finds documents for a text.

    How many it finds at most is its own setting. It is asked one query at a time: components
    promise nothing about threads.
    """

    def __init__(self, component: Any) -> None:
        """Take a component, and warm it up.

        Raises:
            SettingsError: it takes no text, as retrievers by embedding do.
        """
        if not _binds(component.run, query=""):
            name = type(component).__name__
            raise SettingsError(
                f"retriever {name}: its run takes no query as text; for one that takes a query's "
                "embedding, put both into Haystack's TextEmbeddingRetriever(retriever=..., "
                "text_embedder=...)"
            )
        if callable(getattr(component, "warm_up", None)):
            component.warm_up()
        self._component = component
        self._one_at_a_time = threading.Lock()

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`. A document without a score has 1."""
        with self._one_at_a_time:
            found = [self._component.run(query=query).get("documents", []) for query in queries]
        return [_allowed(map(self._hit, documents), options) for documents in found]

    def _hit(self, document: Any) -> Hit:
        score = 1.0 if document.score is None else float(document.score)
        return _hit(document.content or "", document.meta, document.id, None, score)


def _hit(
    text: str, metadata: Mapping[str, Any], name: str | None, document: str | None, score: float
) -> Hit:
    title, source = (
        next((str(metadata[name]) for name in names if metadata.get(name)), "")
        for names in (_TITLES, _SOURCES)
    )
    name = name or source or text[:80]
    return Hit(name, document or source or name, title or source, text, score)


def _allowed(hits: "map[Hit]", options: SearchOptions) -> list[Hit]:
    """The first k that the options allow."""
    good = [
        hit
        for hit in hits
        if hit.score >= options.min_score
        and hit.title not in options.forbid_titles
        and hit.document_id not in options.forbid_documents
        and hit.text.strip()
    ]
    return good[: options.k]
