"""What a retriever finds has a name: results are continued only with the same."""

from pathlib import Path

from command_line import run
from flashback.retrieval.fusion import FusedRetriever
from flashback.retrieval.guard import GuardSettings, LimitedRetriever
from flashback.retrieval.kinds import open_index
from flashback.retrieval.protocol import NoRetriever, Retriever, identity_of
from flashback.retrieval.rerank import RerankedRetriever


class Named:
    """A reranker that changes nothing."""

    name = "none"

    def scores(self, query: str, hits: object) -> list[float]:
        return []


def test_wrappers_are_as_different_as_what_they_hold(tmp_path: Path) -> None:
    opened: list[Retriever] = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"A text about {name}.", "utf-8")
        run("index", tmp_path / f"{name}.txt", "--out", tmp_path / name)
        opened.append(open_index(tmp_path / name))
    one, two = opened
    wrapped = [
        *(one, two, FusedRetriever([one, two]), FusedRetriever([two, one])),
        *(RerankedRetriever(one, Named()), RerankedRetriever(two, Named())),
    ]
    names = [identity_of(each) for each in wrapped]
    assert None not in names
    assert len({*names}) == len(names)
    limited = [identity_of(LimitedRetriever(each, GuardSettings())) for each in wrapped]
    assert limited == names


def test_who_does_not_say_has_none() -> None:
    assert identity_of(None) is None
    assert identity_of(NoRetriever()) is None
    assert identity_of(FusedRetriever([NoRetriever(), NoRetriever()])) is None
