"""Of k passages only those are shown that score about as well as the best one."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashback.errors import SettingsError
from flashback.retrieval.protocol import Hit, near_best, search
from flashback.settings import RetrievalSettings, SearchOptions

SCORES = st.lists(st.floats(-100, 100), max_size=8).map(lambda all_: sorted(all_, reverse=True))


def hits(scores: list[float]) -> list[Hit]:
    return [Hit(str(at), str(at), "", "text", score) for at, score in enumerate(scores)]


@given(scores=SCORES, share=st.floats(0, 1))
def test_what_is_left_begins_with_the_best_and_has_its_share(
    scores: list[float], share: float
) -> None:
    ranked = hits(scores)
    kept = near_best(ranked, share)
    assert kept == ranked[: len(kept)]
    assert bool(kept) == bool(ranked)
    if ranked and ranked[0].score > 0:
        assert all(hit.score >= share * ranked[0].score for hit in kept)
        assert all(hit.score < share * ranked[0].score for hit in ranked[len(kept) :])


@pytest.mark.parametrize("scores", [[-1.0, -5.0, -50.0], [0.0, -1.0], [0.0, 0.0]])
def test_scores_that_are_not_positive_say_nothing_about_shares(scores: list[float]) -> None:
    """As distances or log probabilities are, in other people's retrievers."""
    assert near_best(hits(scores), 1.0) == hits(scores)


def test_a_share_of_zero_leaves_every_positive_score_in() -> None:
    assert len(near_best(hits([9.0, 1.0, 1e-9]), 0.0)) == 3


class Ranked:
    """Finds the same for every query, as many as asked for."""

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [hits([10.0, 6.0, 5.0, 4.9])[: options.k] for _ in queries]


@pytest.mark.parametrize(
    ("k", "share", "left"), [(4, 0.5, 3), (2, 0.5, 2), (4, 0.0, 4), (4, 1.0, 1), (1, 1.0, 1)]
)
def test_the_reader_is_shown_at_most_k(k: int, share: float, left: int) -> None:
    settings = RetrievalSettings(passages=k, min_relative_score=share)
    found = search(Ranked(), ["a", "b"], settings)
    assert [len(one) for one in found] == [left, left]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(SettingsError, match=r"min_relative_score=.*: expected a number from 0 to"):
        RetrievalSettings(min_relative_score=share)
