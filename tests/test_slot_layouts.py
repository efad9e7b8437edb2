"""What a slot could be, too: every layout equals one plain pass with a block mask."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from families import FAMILIES, SLIDING, VOCABULARY, tiny_model
from flashback.corpus.documents import Document
from flashback.patterns.frame import Frame
from flashback.patterns.prompt import Ids
from flashback.scoring.examples import Arrangement, Example, SlotLayout
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Cut, Window
from recompute import TOLERANCE

PLACED = [family for family in FAMILIES if family not in (*SLIDING, "bloom")]
FRAME = Frame((7, 8), (9,))
LAYOUTS = [
    SlotLayout(),
    SlotLayout(kept=False),
    SlotLayout(alone=False, kept=False),
    SlotLayout(alone=False),
    SlotLayout(dropped=(0, 3)),
    SlotLayout(gap=5),
    SlotLayout(parallel=True),
    SlotLayout(kept=False, dropped=(0,), gap=2, parallel=True),
]


def made_up_example() -> Example:
    """Five strides with none, one or two passages; the second and third have the same."""
    drawn = random.Random(3)
    lengths = [(6, 3), (4, 9), (4, 9), (), (8,)]
    parts = [tuple(tuple(drawn.choices(range(300), k=n)) for n in some) for some in lengths]
    parts[2] = parts[1]
    cuts = tuple(Cut(11 + 4 * at) for at in range(5))
    window = Window(Document("d", "", ""), tuple(drawn.choices(range(300), k=31)), 1, cuts, 4)
    passages = tuple(tuple(token for part in some for token in part) for some in parts)
    return Example(window, passages, 9, 2, tuple(parts))


class PlainPass:
    """Tokens, where they stand, and what each of them sees."""

    def __init__(self, example: Example, layout: SlotLayout) -> None:
        self.example = example
        self.layout = layout
        count = 1 if layout.parallel else 2
        self.room = 9 * count + len(FRAME.before) + len(FRAME.after) + len(layout.dropped)
        self.start = self.room + layout.gap
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.sees: list[set[int]] = []

    def put(self, tokens: Ids, position: int, seen: set[int]) -> list[int]:
        """Add tokens that see `seen` and one another; where they are."""
        places = list(range(len(self.ids), len(self.ids) + len(tokens)))
        self.ids += tokens
        self.positions += range(position, position + len(tokens))
        self.sees += [seen | set(places[: number + 1]) for number in range(len(tokens))]
        return places

    def put_passages(self, at: int, context: Sequence[int]) -> set[int]:
        """Add the passages of a cut; what of them is shown. Dropped tokens are not."""
        example, dropped = self.example, self.layout.dropped
        shown: set[int] = set()
        for passage in example.parts[at] if self.layout.parallel else (example.passages[at],):
            if passage:
                whole = dropped + FRAME.around(passage)
                seen = set() if self.layout.alone else set(context)
                places = self.put(whole, self.room - len(whole), seen)
                shown.update(places[len(dropped) :])
        return shown

    def grown(self) -> list[int]:
        """Put the context, each piece seeing its own passage; what the targets are read off."""
        window, cuts = self.example.window, self.example.window.cuts
        ends = [0, *(cut.boundary - 1 for cut in cuts[1:]), cuts[-1].boundary + window.stride - 1]
        context: list[int] = []
        for at, (begin, end) in enumerate(pairwise(ends)):
            seen = set(context) | self.put_passages(at, context)
            context += self.put(window.ids[begin:end], self.start + begin, seen)
        return context[cuts[0].boundary - 1 :]

    def branched(self) -> list[int]:
        """Put the context, and every stride behind it once more."""
        window = self.example.window
        context = self.put(window.ids[: window.cuts[-1].boundary], self.start, set())
        asked: list[int] = []
        for at, cut in enumerate(window.cuts):
            last = cut.boundary - 1
            seen = set(context[:last]) | self.put_passages(at, context[:last])
            asked += self.put(window.ids[last : last + window.stride], self.start + last, seen)
        return asked

    def logits(self, model: torch.nn.Module) -> Tensor:
        """(tokens, V)"""
        mask = torch.full((1, 1, len(self.ids), len(self.ids)), torch.finfo(torch.float32).min)
        for row, seen in enumerate(self.sees):
            mask[0, 0, row, list(seen)] = 0
        ids, positions = torch.tensor([self.ids]), torch.tensor([self.positions])
        output = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        logits: Tensor = output.logits[0]
        return logits


def reference(model: torch.nn.Module, example: Example, layout: SlotLayout) -> Tensor:
    """Log-probabilities (cuts, s) from one plain pass."""
    plain = PlainPass(example, layout)
    asked = plain.grown() if layout.kept else plain.branched()
    targets = torch.tensor(example.window.ids[example.window.cuts[0].boundary :][: len(asked)])
    scores = plain.logits(model)[asked].log_softmax(-1).gather(1, targets[:, None])
    return scores.view(-1, example.window.stride)


@pytest.mark.parametrize("family", PLACED)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: ", ".join(layout.notes) or "slot")
@torch.no_grad()
def test_every_layout_equals_a_pass_with_a_block_mask(family: str, layout: SlotLayout) -> None:
    model, example = tiny_model(family), made_up_example()
    assert max(example.window.ids) < VOCABULARY
    arrangement = Arrangement("slot", FRAME, layout=layout)
    (found,) = TargetScorer(model).log_probs([example], arrangement)
    assert (found - reference(model, example, layout)).abs().max() <= TOLERANCE


def test_layouts_differ() -> None:
    model, example = tiny_model("llama"), made_up_example()
    scores = [
        TargetScorer(model).log_probs([example], Arrangement("slot", FRAME, layout=layout))
        for layout in LAYOUTS
    ]
    for number, (one,) in enumerate(scores):
        for (other,) in scores[:number]:
            assert (one - other).abs().max() > TOLERANCE
