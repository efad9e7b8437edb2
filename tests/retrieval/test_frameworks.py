"""Retrievers of LangChain and LlamaIndex, the real packages, drive the stride loop."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever as LangChainBase
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core.base.base_retriever import BaseRetriever as LlamaIndexBase
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode

import flashback
from flashback.errors import SettingsError
from flashback.retrieval.frameworks import retriever_of
from flashback.retrieval.protocol import Hit
from flashback.settings import SearchOptions

TEXTS = ["The moon pulls at the sea.", "A tide is a wave.", "Rivers end in the sea.", "  "]
TITLES = ["moon", "tide", "river", "nothing"]
SCORES = [3.0, 2.0, 0.5, 0.1]


class OfLangChain(LangChainBase):
    scored: bool = True

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [
            Document(
                id=f"{title}-1",
                page_content=text,
                metadata={"source": f"{title}.md", "title": title}
                | ({"relevance_score": score} if self.scored else {}),
            )
            for title, text, score in zip(TITLES, TEXTS, SCORES, strict=True)
        ]


class OfLlamaIndex(LlamaIndexBase):
    def __init__(self, scored: bool = True) -> None:
        self.scored = scored
        super().__init__()

    def _retrieve(self, query_bundle: Any) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=TextNode(
                    id_=f"{title}-1",
                    text=text,
                    metadata={"title": title},
                    relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"{title}.md")},
                ),
                score=score if self.scored else None,
            )
            for title, text, score in zip(TITLES, TEXTS, SCORES, strict=True)
        ]


MAKERS: list[Callable[..., Any]] = [OfLangChain, OfLlamaIndex]


@pytest.mark.parametrize("make", MAKERS)
def test_what_they_find_are_hits(make: Callable[..., Any]) -> None:
    found = retriever_of(make()).search(["tides", "seas"], SearchOptions(k=10))
    expected = [
        Hit(f"{title}-1", f"{title}.md", title, text, score)
        for title, text, score in zip(TITLES[:3], TEXTS, SCORES, strict=False)
    ]
    assert found == [expected, expected]  # an empty text is no passage


@pytest.mark.parametrize("make", MAKERS)
def test_without_scores_all_are_as_good(make: Callable[..., Any]) -> None:
    ((*found,),) = retriever_of(make(scored=False)).search(["tides"], SearchOptions(k=2))
    assert [hit.score for hit in found] == [1.0, 1.0]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("options", "titles"),
    [
        (SearchOptions(k=2), ["moon", "tide"]),
        (SearchOptions(k=9, min_score=1.0), ["moon", "tide"]),
        (SearchOptions(k=9, forbid_titles=("moon",)), ["tide", "river"]),
        (SearchOptions(k=1, forbid_documents=("moon.md", "tide.md")), ["river"]),
    ],
)
def test_options_hold_for_them(
    make: Callable[..., Any], options: SearchOptions, titles: list[str]
) -> None:
    (found,) = retriever_of(make()).search(["tides"], options)
    assert [hit.title for hit in found] == titles


def test_a_vector_store_is_asked_for_its_retriever() -> None:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_texts(TEXTS[:3], [{"source": title} for title in TITLES[:3]])
    (found,) = retriever_of(store).search([TEXTS[1]], SearchOptions(k=1))
    assert [(hit.text, hit.document_id, hit.title) for hit in found] == [(TEXTS[1], "tide", "tide")]


class Own:
    """As the protocol has it, and nothing else."""

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [[Hit("a", "a", "own", "The sea is salty.", 1.0)][: options.k] for _ in queries]


@pytest.mark.parametrize(("make", "title"), [*((one, "moon") for one in MAKERS), (Own, "own")])
def test_load_takes_them_all(make: Callable[..., Any], title: str) -> None:
    writer = flashback.load(retriever=make(), adapter=None, device="cpu", dtype="float32")
    result = writer.generate("The sea", max_new_tokens=20)
    assert [stride.passages[0].title for stride in result.strides] == [title, title]


class OneQuery:
    """As other libraries have it."""

    def search(self, query: str) -> list[str]:
        return [query]


@pytest.mark.parametrize("wrong", [3, object(), dict, Own, OneQuery()])
def test_other_things_are_refused_in_one_line(wrong: Any) -> None:
    with pytest.raises(SettingsError, match="expected an object with search") as found:
        flashback.load(retriever=wrong)
    assert "\n" not in str(found.value)


def test_an_index_and_a_retriever_are_one_too_many() -> None:
    with pytest.raises(SettingsError, match="index and retriever: expected one of them"):
        flashback.load(index="IDX", retriever=Own())
