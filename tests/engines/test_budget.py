"""Running and idle sequences and passages share one budget of bytes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import SLIDING, SLOTTED, tiny_model
from flashback.engines.cache.budget import Budget
from flashback.engines.cache.layers import BufferedSlidingLayer
from flashback.engines.cache.passages import PassageCache
from flashback.engines.local import LocalEngine
from flashback.patterns.prompt import Layout, PlacedPassage, Prompt, View
from flashback.sampling import Sampler
from flashback.settings import SamplingSettings


class Shelf:
    """A cache whose entries are their sizes."""

    def __init__(self, budget: Budget) -> None:
        self.entries: list[tuple[int, int]] = []
        self.in_use = 0
        self._budget = budget
        budget.join(self)

    def put(self, size: int) -> None:
        self.entries.append((self._budget.tick(), size))
        self._budget.trim()

    @property
    def bytes(self) -> int:
        return self.in_use + sum(size for _, size in self.entries)

    @property
    def oldest(self) -> int | None:
        return self.entries[0][0] if self.entries else None

    def evict(self) -> None:
        del self.entries[0]


@given(
    limit=st.integers(0, 100),
    in_use=st.integers(0, 60),
    puts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=30),
)
def test_what_was_used_longest_ago_goes_first_wherever_it_is(
    limit: int, in_use: int, puts: list[tuple[int, int]]
) -> None:
    """Against one list of everything, in the order of its use."""
    budget = Budget(limit)
    shelves = [Shelf(budget) for _ in range(3)]
    shelves[0].in_use = in_use
    together: list[tuple[int, int]] = []
    for at, size in puts:
        shelves[at].put(size)
        together.append((at, size))
        while together and in_use + sum(size for _, size in together) > limit:
            del together[0]
        for number, shelf in enumerate(shelves):
            own = [size for at, size in together if at == number]
            assert [size for _, size in shelf.entries] == own


def placed(number: int) -> PlacedPassage:
    return Layout(1, 10).placed((number,) * 10)


def states() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(1, 1, 10, 10), torch.zeros(1, 1, 10, 10))]  # 800 bytes


def test_a_passage_that_is_hit_outlives_one_that_is_not() -> None:
    budget = Budget(1600)
    cache = PassageCache(budget)
    for number in (1, 2):
        cache.add(placed(number), states())
    assert cache.find(placed(1)) is not None
    cache.add(placed(3), states())
    assert [cache.find(placed(one)) is not None for one in (1, 2, 3)] == [True, False, True]
    assert (cache.bytes, cache.count.evicted) == (1600, 1)


def write(engine: LocalEngine, prompt: Prompt) -> int:
    """Complete a prompt by a token; how many of its tokens were reused."""
    completion = engine.complete(prompt, 1, Sampler(SamplingSettings(), []))
    list(completion)
    return completion.usage.reused


def test_idle_texts_make_room_for_passages_and_passages_for_texts() -> None:
    engine = LocalEngine(tiny_model("llama"), 192, idle_sequences=None, cache_bytes=1 << 30)
    text = Prompt.plain([0, *range(10, 60)])
    write(engine, text)
    one = engine.leases.bytes
    engine.budget.limit = one + one // 2
    passage = tuple(range(100, 140))
    slot = Prompt.with_views((0, *range(60, 70)), [View(1, passage)], Layout(1, 40))
    write(engine, slot)  # its sequence and its passage: the first text is the oldest
    assert engine.cache_use.sequences == 1
    assert write(engine, text) < len(text.ids) - 1
    assert engine.leases.bytes + engine.passages.bytes <= engine.budget.limit


@pytest.mark.parametrize("family", SLOTTED)
def test_the_passage_in_view_counts_in_layers_that_hold_it_beside_their_buffers(
    family: str,
) -> None:
    engine = LocalEngine(tiny_model(family), 192, idle_sequences=None, cache_bytes=1 << 30)
    text = (0, *range(10, 60))
    sizes = []
    for length in (1, 40):
        engine.forget()
        write(engine, Prompt.with_views(text, [View(1, (7,) * length)], Layout(1, 40)))
        (sequence,) = engine.leases.idle
        held = {
            (part.untyped_storage().data_ptr(), part.nbytes)
            for layer in sequence.cache.layers
            if isinstance(layer, BufferedSlidingLayer) and layer._passage is not None
            for part in layer._passage
        }
        sizes.append((engine.leases.bytes, sum(size for _, size in held)))
    (few, own), (many, more) = sizes
    assert many - few == more - own
    assert (more > 0) == (family in SLIDING)


def test_running_texts_count_and_are_never_evicted() -> None:
    engine = LocalEngine(tiny_model("llama"), 192, idle_sequences=None, cache_bytes=1)
    prompt = Prompt.plain([0, *range(10, 60)])
    completion = engine.complete(prompt, 3, Sampler(SamplingSettings(), []))
    running = iter(completion)
    next(running)
    assert engine.leases.bytes > engine.budget.limit
    assert write(engine, Prompt.plain([0, 7])) == 0
    assert len(list(running)) == 2
    assert engine.leases.bytes == 0
