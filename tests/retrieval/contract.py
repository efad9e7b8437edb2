"""What every retriever does, as tests; a backend's test module has a subclass of them.

    class TestOurs(RetrieverContract):
        @pytest.fixture(scope="class")
        @classmethod
        def make(cls, tmp_path_factory: pytest.TempPathFactory) -> Make:
            return lambda passages: Ours(tmp_path_factory.mktemp("ours"), passages)

`make` may be called several times and gives a fresh retriever over its passages each time. If that
is a `Writable`, it is written to as well; see `writer`.
"""

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from flashback.corpus.passages import Passage
from flashback.errors import SettingsError
from flashback.retrieval.protocol import Hit, Retriever, Writable
from flashback.settings import SearchOptions

Make = Callable[[Sequence[Passage]], Retriever]

PETS = {
    "Cats": "The cat sleeps on the mat, warm & quiet; it purrs.",
    "Dogs": "A dog barks at the cat, and the dog runs.",
    "Birds": "A bird sings (loudly) on a naïve roof: cuckoo AND cuckoo.",
    "Fish": "The fish says nothing about cuckoos or mats.",
}
STRANGE = (
    Passage("it's#0", "it's", 'The "quoted" title', "A quoted lizard."),
    Passage("100%_\\d#0", "100%_\\d", "Back\\slash' OR 1=1 --", "A slashed lizard.\nTwo\tlines."),
    Passage("雪/été#0", "雪/été", "雪と🦎", "雪 lizard 🦎 été Straße."),
    Passage("]}){[(#0", "]}){[(", "{{title}}", "A bracketed lizard; $1 {0} :name %s ?"),
)
"""Names and texts that a store's own language could take for something else."""
QUERIES = (
    *("dog cat", "cuckoo", "singing birds", "cat", "mats", "", " \n\t", "naïve", "été 雪 🦎"),
    *("\ud800 cat", "cat\0cat", 'it\'s 100% \\ "cat" (dog) [bird] {fish}', "cat " * 3000),
    *("text:cat", "+cat -dog", "cat AND NOT dog", "cat* ~2 ^3", "'; DROP TABLE cats; --", "&|!<->"),
)


def passages_of(texts: dict[str, str]) -> list[Passage]:
    """A passage of a document each, by its title."""
    return [
        Passage(f"{title.lower()}#0", title.lower(), title, text) for title, text in texts.items()
    ]


def ask_one(retriever: Retriever, query: str, **options: Any) -> list[Hit]:
    """The hits of one query, 10 at most."""
    (hits,) = retriever.search([query], SearchOptions(**{"k": 10} | options))
    return hits


def found(retriever: Retriever, query: str, **options: Any) -> list[str]:
    """The document ids of the hits."""
    return [hit.document_id for hit in ask_one(retriever, query, **options)]


def alike(hits: Sequence[Hit], others: Sequence[Hit]) -> bool:
    """Whether hits are the same, but for how cosines of several at a time are rounded."""
    rounded = ([replace(hit, score=0.0) for hit in given] for given in (hits, others))
    scores = ([hit.score for hit in given] for given in (hits, others))
    return next(rounded) == next(rounded) and next(scores) == pytest.approx(next(scores), abs=1e-6)


class RetrieverContract:
    """Tests of one backend; a subclass gives `make`."""

    lexical: ClassVar[bool] = True
    """Whether a passage without a word of the query is no hit; to a dense retriever, any is one."""
    snapshots: ClassVar[bool] = True
    """Whether a search sees all or nothing of a commit; stores without transactions do not."""

    forbidding_keeps_scores: ClassVar[bool] = True
    """Whether what is forbidden still counts among the passages in which a word is rare."""

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls) -> Make:
        """Makes a retriever over passages."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def pets(cls, make: Make) -> Retriever:
        """Over four passages."""
        return make(passages_of(PETS))

    @pytest.fixture(scope="class")
    @classmethod
    def strange(cls, make: Make) -> Retriever:
        """Over passages with strange names."""
        return make(STRANGE)

    def writer(self, retriever: Retriever) -> Writable:
        """What writes into what a retriever reads: itself, unless overridden."""
        if not isinstance(retriever, Writable):
            pytest.skip("it is built once")
        return retriever

    # Hits

    def test_a_passage_is_found_as_it_was_given(self, pets: Retriever) -> None:
        for passage in passages_of(PETS):
            hit = ask_one(pets, passage.text, k=1)[0]
            expected = (passage.id, passage.document_id, passage.title)
            assert (hit.id, hit.document_id, hit.title) == expected
            assert hit.text in (passage.text, f"{passage.title}\n{passage.text}")
            assert type(hit.score) is float

    def test_hits_come_best_first_and_k_at_most(self, pets: Retriever) -> None:
        everything = pets.search(QUERIES, SearchOptions(k=1000))  # beyond the corpus
        for hits in everything:
            scores = [hit.score for hit in hits]
            assert scores == sorted(scores, reverse=True)
            assert len({hit.id for hit in hits}) == len(hits) <= 4
        for k in (1, 2, 3, 4, 5):
            assert pets.search(QUERIES, SearchOptions(k=k)) == [hits[:k] for hits in everything]

    def test_equal_passages_keep_their_order(self, make: Make) -> None:
        twins = [Passage(f"{n}#0", str(n), "", "The same words.") for n in range(30)]
        retriever = make(twins)
        order = found(retriever, "same words", k=30)
        assert sorted(order, key=int) == [str(n) for n in range(len(order))]
        for k in (1, 7, 29):
            assert found(retriever, "same words", k=k) == order[:k]
        assert found(retriever, "same words", k=30) == order

    def test_a_batch_gives_what_its_queries_give_one_by_one(self, pets: Retriever) -> None:
        options = SearchOptions(k=3, forbid_titles=("Fish",))
        alone = [pets.search([query], options)[0] for query in QUERIES]
        assert all(map(alike, pets.search(QUERIES, options), alone))
        assert all(map(alike, pets.search(list(reversed(QUERIES)), options), alone[::-1]))
        assert pets.search([], options) == []

    def test_calls_at_the_same_time_give_what_one_gives(self, pets: Retriever) -> None:
        queries = ["dog cat", "cuckoo", "singing birds", "cat", "mats", "zebra"] * 4
        random.Random(0).shuffle(queries)
        expected = [ask_one(pets, query) for query in queries]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda query: ask_one(pets, query), queries)) == expected

    # Queries

    @pytest.mark.parametrize("query", ["", " \n", "\u3000"])
    def test_a_query_without_text_finds_nothing(self, pets: Retriever, query: str) -> None:
        assert ask_one(pets, query) == []
        assert ask_one(pets, query, forbid_titles=("Cats",)) == []

    @pytest.mark.parametrize("query", ["zebra", "🙂 ()", "s" * 10_000, "\ud800", "\0"])
    def test_a_query_of_unknown_words_is_no_failure(self, pets: Retriever, query: str) -> None:
        hits = ask_one(pets, query)
        if self.lexical:
            assert hits == []

    def test_a_query_may_be_very_long(self, pets: Retriever) -> None:
        unknown = " ".join(f"unknown{n}" for n in range(5000))
        hits = found(pets, f"{'dog ' * 5000} {unknown}")
        if self.lexical:
            assert hits == ["dogs"]

    def test_a_query_has_no_syntax(self, pets: Retriever) -> None:
        for query in ("+sings -bird", "sings AND NOT bird", '"sings (loudly)"', "text:sings"):
            if self.lexical:
                assert found(pets, query, k=1) == ["birds"]
            else:
                ask_one(pets, query)

    def test_one_text_for_queries_and_a_k_below_one_are_refused(self, pets: Retriever) -> None:
        with pytest.raises(SettingsError, match=r"queries='cat': expected several, found one"):
            pets.search("cat", SearchOptions())
        for k in (0, -1):
            with pytest.raises(SettingsError, match=f"k={k}: expected at least 1 passage"):
                pets.search(["cat"], SearchOptions(k=k))

    # Options

    def test_hits_below_the_least_score_are_left_out(self, pets: Retriever) -> None:
        first, second, *_ = everything = ask_one(pets, "dog cat")
        assert first.score > second.score > 0
        between = (first.score + second.score) / 2
        assert ask_one(pets, "dog cat", min_score=between) == [first]
        assert ask_one(pets, "dog cat", min_score=second.score * 0.999)[:2] == everything[:2]
        assert ask_one(pets, "dog cat", min_score=first.score * 1.001) == []

    def test_forbidden_titles_and_documents_are_left_out(self, pets: Retriever) -> None:
        query = "cuckoo cat"
        everything = ask_one(pets, query)
        assert sorted(hit.document_id for hit in everything) == ["birds", "cats", "dogs", "fish"]
        for title, document in (("Birds", "birds"), ("Cats", "cats")):
            rest = [hit for hit in everything if hit.title != title]
            by_title = ask_one(pets, query, forbid_titles=(title,))
            assert ask_one(pets, query, forbid_documents=(document,)) == by_title
            if self.forbidding_keeps_scores:
                assert alike(by_title, rest)
            assert {hit.id for hit in by_title} == {hit.id for hit in rest}
        both = {"forbid_titles": ("Birds", "Fish"), "forbid_documents": ("cats",)}
        assert found(pets, query, k=1, **both) == ["dogs"]
        assert found(pets, query, forbid_titles=tuple(PETS)) == []

    def test_forbidden_names_are_compared_whole_and_exactly(self, pets: Retriever) -> None:
        everything = found(pets, "cuckoo cat")
        for title in ("birds", "Bird", "Birds Cats", "", "*", "%", 'B"irds', "\ud800", "B\\irds"):
            assert found(pets, "cuckoo cat", forbid_titles=(title,)) == everything
        for document in ("Cats", "cats#0", "cat", "c%", "c'ats"):
            assert found(pets, "cuckoo cat", forbid_documents=(document,)) == everything

    def test_many_names_may_be_forbidden(self, pets: Retriever) -> None:
        names = tuple(f"name {n}" for n in range(500))
        left = found(pets, "cuckoo cat", forbid_titles=("Birds", *names), forbid_documents=names)
        assert sorted(left) == ["cats", "dogs", "fish"]

    def test_strange_names_and_texts_come_back_whole_and_can_be_forbidden(
        self, strange: Retriever
    ) -> None:
        everything = {hit.id: hit for hit in ask_one(strange, "lizard")}
        assert set(everything) == {passage.id for passage in STRANGE}
        for passage in STRANGE:
            hit = everything[passage.id]
            assert (hit.document_id, hit.title) == (passage.document_id, passage.title)
            assert hit.text in (passage.text, f"{passage.title}\n{passage.text}")
            rest = sorted(other.document_id for other in STRANGE if other is not passage)
            assert sorted(found(strange, "lizard", forbid_titles=(passage.title,))) == rest
            left = found(strange, "lizard", forbid_documents=(passage.document_id,))
            assert sorted(left) == rest

    # Writing

    def test_what_is_added_is_found_after_commit_and_refresh(self, make: Make) -> None:
        retriever = make(passages_of(PETS))
        writer = self.writer(retriever)
        before = found(retriever, "parrot talks")
        writer.add([Passage("parrots#0", "parrots", "Parrots", "A parrot talks.")])
        assert found(retriever, "parrot talks") == before
        writer.commit()
        writer.refresh()
        assert found(retriever, "parrot talks")[0] == "parrots"
        assert ask_one(retriever, "parrot talks")[0].title == "Parrots"

    def test_what_is_deleted_is_not_found_after_commit_and_refresh(self, make: Make) -> None:
        retriever = make([*passages_of(PETS), Passage("dogs#1", "dogs", "Dogs", "More of a dog.")])
        writer = self.writer(retriever)
        assert {"dogs", "cats"} <= set(found(retriever, "dog cat"))
        writer.delete(["dogs", "no such document"])
        assert "dogs" in found(retriever, "dog cat")
        writer.commit()
        writer.refresh()
        assert "dogs" not in found(retriever, "dog cat")
        assert "cats" in found(retriever, "dog cat")

    def test_a_document_is_replaced_in_one_commit(self, make: Make) -> None:
        retriever = make(passages_of(PETS))
        writer = self.writer(retriever)
        for text in ("A cat climbs.", "A cat hunts."):
            writer.delete(["cats"])
            writer.add([Passage("cats#0", "cats", "Cats", text)])
            writer.commit()
            writer.refresh()
            cats = [hit for hit in ask_one(retriever, text) if hit.document_id == "cats"]
            assert [hit.text.removeprefix("Cats\n") for hit in cats] == [text]

    def test_strange_names_can_be_deleted(self, make: Make) -> None:
        retriever = make(STRANGE)
        writer = self.writer(retriever)
        left = [passage.document_id for passage in STRANGE]
        while left:
            writer.delete([left.pop(0)])
            writer.commit()
            writer.refresh()
            assert sorted(found(retriever, "lizard")) == sorted(left)

    def test_a_commit_of_nothing_changes_nothing(self, make: Make) -> None:
        retriever = make(passages_of(PETS))
        writer = self.writer(retriever)
        before = ask_one(retriever, "dog cat")
        writer.add([])
        writer.delete([])
        writer.commit()
        writer.refresh()
        assert ask_one(retriever, "dog cat") == before

    def test_searches_see_whole_commits_while_somebody_writes(self, make: Make) -> None:
        retriever = make([*passages_of(PETS), *_lizards(0)])
        writer = self.writer(retriever)
        if not self.snapshots:
            pytest.skip("a store without transactions")
        seen: list[list[str]] = []
        failures: list[BaseException] = []
        done = threading.Event()

        def look() -> None:
            try:
                while not done.is_set():
                    batch = retriever.search(["lizard", "lizard"], SearchOptions(k=10))
                    seen.extend(map(_lizards_among, batch))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(1, 6):
            writer.delete(["0", "1", "2"])
            writer.add(_lizards(number))
            writer.commit()
            writer.refresh()
        done.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert seen
        assert all(len(titles) == 3 and len(set(titles)) == 1 for titles in seen)
        assert _lizards_among(ask_one(retriever, "lizard")) == ["5"] * 3


def _lizards(number: int) -> list[Passage]:
    """The documents 0, 1 and 2, of a version."""
    text = f"lizard number {number}"
    return [Passage(f"{part}#0", str(part), str(number), text) for part in range(3)]


def _lizards_among(hits: Sequence[Hit]) -> list[str]:
    """The versions that were found."""
    return [hit.title for hit in hits if hit.document_id in ("0", "1", "2")]
