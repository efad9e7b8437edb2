"""Prompts to begin with: beginnings of passages, made once for each version of an index."""

from collections.abc import Sequence

from flashback.retrieval.protocol import Hit, NoRetriever
from flashback.server.prompt_examples import PromptExamples, prompts_of
from flashback.settings import SearchOptions

LIGHTHOUSE = (
    "The lighthouse\nThe lighthouse of Skarvik was built by the engineer Ada Lund in the summer of "
    "1874. It is white."
)
BRIDGE = (
    "A bridge\nA bridge over the river Orlen was opened for carts and for walkers in the year 1902."
    " It sways."
)


class Sampling:
    """A retriever with passages to look at; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [[] for _ in queries]

    def sample(self) -> list[str]:
        self.asked += 1
        return [LIGHTHOUSE, BRIDGE]


def test_a_prompt_is_half_a_sentence_and_the_last_one_a_long_text() -> None:
    *short, long = prompts_of([LIGHTHOUSE, BRIDGE])
    assert short == [
        "The lighthouse of Skarvik was built by the",
        "A bridge over the river Orlen was opened",
    ]
    assert long.startswith(LIGHTHOUSE)
    assert long.endswith(f"\n\n{short[0]}")


def test_passages_without_a_sentence_give_no_prompts() -> None:
    assert prompts_of([]) == []
    assert (
        prompts_of(["x = 1", "Title\nToo short.", "Title\nlower case does not begin a text. A"])
        == []
    )


def test_an_index_is_looked_at_once() -> None:
    examples, index = PromptExamples(), Sampling()
    assert examples.of(index) == examples.of(index) == prompts_of([LIGHTHOUSE, BRIDGE])
    assert index.asked == 1
    assert examples.of(None) == examples.of(NoRetriever()) == []
    examples.of(index)
    assert index.asked == 2
