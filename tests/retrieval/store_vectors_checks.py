"""What every store with vectors does, as tests; a store's test module has a subclass of them.

Encoders are by name here: `letters` and its variants are registered while a test runs.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from flashback.corpus.passages import Passage
from flashback.errors import ReaderError, RetrieverError
from flashback.retrieval.encoders import ENCODERS, encode
from flashback.retrieval.fusion import FusedRetriever
from flashback.retrieval.protocol import Writable
from flashback.settings import SearchOptions
from retrieval.contract import PETS, ask_one, found, passages_of
from retrieval.letters import Letters
from throw_away import registered

OpenStore = Callable[[str, str | None], Writable]
"""Opens the store of a name, with an encoder or without one."""


class Longer(Letters):
    """One of another dimension."""

    name = "longer"
    dimension = 27


class Other(Letters):
    """One of the same dimension."""

    name = "other"

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        return np.flip(super().encode(texts), 1)


class StoreVectorsChecks:
    """Tests of one store; a subclass gives `open_store`."""

    @pytest.fixture
    @staticmethod
    def open_store() -> OpenStore:
        """Opens a store."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    @staticmethod
    def encoders() -> Iterator[None]:
        """The encoders of this module, by name."""
        with contextlib.ExitStack() as stack:
            for one in (Letters, Longer, Other):
                stack.enter_context(registered(ENCODERS, one.name, one))
            yield

    def filled(self, open_store: OpenStore, name: str) -> Writable:
        """A store of `letters` with passages."""
        store = open_store(name, "letters")
        store.add([*passages_of(PETS), Passage("1#0", "1", "", "12345")])
        store.commit()
        return store

    def test_scores_are_cosines_of_all_that_has_a_vector(self, open_store: OpenStore) -> None:
        store = self.filled(open_store, "cosines")
        texts = [f"{title}\n{text}" for title, text in PETS.items()]
        vectors, (wanted,) = encode(Letters(), texts), encode(Letters(), ["a purring cat"])
        cosines = sorted((float(score) for score in vectors @ wanted), reverse=True)
        for k in (1, 3, 10):
            hits = ask_one(store, "a purring cat", k=k, min_score=-1.0)
            assert [hit.score for hit in hits] == pytest.approx(cosines[:k], abs=2e-3)
        assert store.search(["12345", " "], SearchOptions()) == [[], []]

    def test_what_an_encoder_filled_is_found_by_words_and_by_both(
        self, open_store: OpenStore
    ) -> None:
        meaning = self.filled(open_store, "two_ways")
        words = open_store("two_ways", None)
        assert found(words, "barks") == ["dogs"]
        fused = FusedRetriever([words, meaning])
        best, *rest = ask_one(fused, "dog barks", k=4)
        assert best.document_id == "dogs"
        assert best.score == pytest.approx(1.0)
        assert len(rest) == 3
        assert "dogs" not in found(fused, "dog barks", forbid_titles=("Dogs",))
        words.add([Passage("x#0", "x", "", "no vector")])
        with pytest.raises(RetrieverError, match="its passages have vectors; name their encoder"):
            words.commit()
        assert len(found(meaning, "dog", min_score=-1.0)) == 4

    def test_vectors_of_another_encoder_are_refused(self, open_store: OpenStore) -> None:
        self.filled(open_store, "others")
        assert found(open_store("others", "letters"), PETS["Fish"])[0] == "fish"
        with pytest.raises(
            RetrieverError, match="vectors of 26 dimensions, but the encoder longer"
        ):
            open_store("others", "longer")
        with pytest.raises(RetrieverError, match="the encoder other gives other vectors than thos"):
            open_store("others", "other")

    def test_a_store_without_vectors_is_refused(self, open_store: OpenStore) -> None:
        words = open_store("plain", None)
        words.add(passages_of(PETS))
        words.commit()
        with pytest.raises(RetrieverError, match="it was made without vectors; search it without"):
            open_store("plain", "letters")

    def test_an_encoder_that_is_missing_is_refused(
        self, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ReaderError, match="encoder no/such/thing: "):
            open_store("missing", "no/such/thing")
