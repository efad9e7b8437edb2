"""What a slot could be, too: every layout equals one plain pass with a block mask."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from families import FAMILIES, SLIDING, VOCABULARY, tiny_model
from flashback.arrangement import Frame, Ids
from flashback.corpus.documents import Document
from flashback.packing.examples import Arrangement, Example, SlotLayout
from flashback.packing.forward import TargetScorer
from flashback.packing.windows import Cut, Window
from flashback.settings import Pattern
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


def reference(model: torch.nn.Module, example: Example, layout: SlotLayout) -> Tensor:
    """Every stride's targets from one pass over context, passages and, if it is not kept, stride.

    Rows of the mask: what each token sees. Dropped tokens are seen by their passage alone.
    """
    window, cuts = example.window, example.window.cuts
    count = 1 if layout.parallel else 2
    room = 9 * count + len(FRAME.before) + len(FRAME.after) + len(layout.dropped)
    ids: list[int] = []
    positions: list[int] = []
    sees: list[set[int]] = []

    def put(tokens: Ids, position: int, seen: set[int]) -> list[int]:
        places = list(range(len(ids), len(ids) + len(tokens)))
        for number, place in enumerate(places):
            ids.append(tokens[number])
            positions.append(position + number)
            sees.append(seen | set(places[: number + 1]))
        return places

    def put_passages(at: int, context: Sequence[int]) -> set[int]:
        alone = example.parts[at] if layout.parallel else (example.passages[at],)
        shown: set[int] = set()
        for passage in alone:
            if passage:
                whole = layout.dropped + FRAME.around(passage)
                seen = set() if layout.alone else set(context)
                shown |= set(put(whole, room - len(whole), seen)[len(layout.dropped) :])
        return shown

    start = room + layout.gap
    asked: list[int] = []
    if layout.kept:
        context: list[int] = []
        ends = [*(cut.boundary - 1 for cut in cuts), cuts[-1].boundary + window.stride - 1]
        ends[0] = 0
        previous: set[int] = set()
        for at, (begin, end) in enumerate(pairwise(ends)):
            # An unchanged passage stays as it is, whatever it saw.
            if not (at and example.passages[at] == example.passages[at - 1] and layout.alone):
                previous = put_passages(at, context)
            context += put(window.ids[begin:end], start + begin, set(context) | previous)
        asked = context[cuts[0].boundary - 1 :]
    else:
        context = put(window.ids[: cuts[-1].boundary], start, set())
        for at, cut in enumerate(cuts):
            last = cut.boundary - 1
            shown = put_passages(at, context[:last])
            stride = window.ids[last : last + window.stride]
            asked += put(stride, start + last, shown | set(context[:last]))
    mask = torch.full((1, 1, len(ids), len(ids)), torch.finfo(torch.float32).min)
    for row, seen in enumerate(sees):
        mask[0, 0, row, list(seen)] = 0
    logits = model(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        attention_mask=mask,
        use_cache=False,
    ).logits[0, asked]
    targets = torch.tensor(window.ids[cuts[0].boundary :][: len(asked)])
    scores: Tensor = logits.log_softmax(-1).gather(1, targets[:, None])
    return scores.view(-1, window.stride)


@pytest.mark.parametrize("family", PLACED)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: ", ".join(layout.notes) or "slot")
@torch.no_grad()
def test_every_layout_equals_a_pass_with_a_block_mask(family: str, layout: SlotLayout) -> None:
    model, example = tiny_model(family), made_up_example()
    assert max(example.window.ids) < VOCABULARY
    arrangement = Arrangement(Pattern.SLOT, FRAME, layout=layout)
    (found,) = TargetScorer(model).log_probs([example], arrangement)
    assert (found - reference(model, example, layout)).abs().max() <= TOLERANCE


def test_layouts_differ() -> None:
    model, example = tiny_model("llama"), made_up_example()
    scores = [
        TargetScorer(model).log_probs([example], Arrangement(Pattern.SLOT, FRAME, layout=layout))
        for layout in LAYOUTS
    ]
    for number, (one,) in enumerate(scores):
        for (other,) in scores[:number]:
            assert (one - other).abs().max() > TOLERANCE
