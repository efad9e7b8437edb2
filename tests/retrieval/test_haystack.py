"""Retrievers of Haystack, the real package, drive the stride loop."""

import os
from typing import Any

import pytest

import flashback
from flashback.errors import SettingsError
from flashback.retrieval.frameworks import retriever_of
from flashback.settings import SearchOptions

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # nothing is sent from a test
pytest.importorskip("haystack")

from haystack import Document, component
from haystack.components.retrievers import (
    InMemoryBM25Retriever,
    InMemoryEmbeddingRetriever,
    TextEmbeddingRetriever,
)
from haystack.document_stores.in_memory import InMemoryDocumentStore

TEXTS = {
    "moon": "The moon pulls at the sea.",
    "tide": "A tide is a wave of the sea.",
    "river": "Rivers end in the sea, far from the hills where they spring.",
    "hill": "A hill is no mountain.",
    "wood": "A wood is a small forest.",
}
AXES = ("moon", "wave", "river", "hill", "wood")


def embedded(text: str) -> list[float]:
    return [float(word in text.lower()) for word in AXES] + [0.1]


@component
class Embedder:
    """A text embedder without a model."""

    warm = False

    def warm_up(self) -> None:
        self.warm = True

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        assert self.warm
        return {"embedding": embedded(text)}


@pytest.fixture
def store() -> InMemoryDocumentStore:
    store = InMemoryDocumentStore()
    documents = [
        Document(
            id=f"{title}-1",
            content=text,
            meta={"title": title, "file_path": f"{title}.md"},
            embedding=embedded(text),
        )
        for title, text in TEXTS.items()
    ]
    store.write_documents([*documents, Document(id="empty", content="")])
    return store


def found(retriever: Any, query: str, **options: Any) -> list[str]:
    (hits,) = retriever_of(retriever).search([query], SearchOptions(**{"k": 10} | options))
    return [hit.title for hit in hits]


def test_bm25(store: InMemoryDocumentStore) -> None:
    ours = retriever_of(InMemoryBM25Retriever(store))
    (first,), (second,) = ours.search(["the moon", "a wave"], SearchOptions())
    assert (first.id, first.document_id, first.title) == ("moon-1", "moon.md", "moon")
    assert first.text == TEXTS["moon"]
    assert first.score > 0
    assert second.title == "tide"


@pytest.mark.parametrize(
    ("options", "titles"),
    [
        ({"k": 2}, ["moon", "tide"]),
        ({"min_score": 1e9}, []),
        ({"k": 1, "forbid_titles": ("moon",)}, ["tide"]),
        ({"k": 1, "forbid_documents": ("moon.md", "tide.md")}, ["river"]),
    ],
)
def test_options_hold(
    store: InMemoryDocumentStore, options: dict[str, Any], titles: list[str]
) -> None:
    assert found(InMemoryBM25Retriever(store), "moon sea", **options) == titles


def test_an_embedding_retriever_needs_a_text_embedder(store: InMemoryDocumentStore) -> None:
    by_vector = InMemoryEmbeddingRetriever(store)
    with pytest.raises(SettingsError, match="InMemoryEmbeddingRetriever: its run takes no query"):
        retriever_of(by_vector)
    whole = TextEmbeddingRetriever(retriever=by_vector, text_embedder=Embedder())
    assert found(whole, "a wave", k=1) == ["tide"]


def test_it_drives_the_stride_loop(store: InMemoryDocumentStore) -> None:
    retriever = InMemoryBM25Retriever(store)
    writer = flashback.load(retriever=retriever, adapter=None, device="cpu", dtype="float32")
    result = writer.generate("The moon and the sea", max_new_tokens=4)
    assert result.sources[0].title == "moon"
