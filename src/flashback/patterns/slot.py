"""Pattern `slot`: passages at reserved positions, exchanged in place (ours).

Symbols: h history tokens, R = k·m + f reserved positions, f frame, p passage tokens, c context, e
context tokens computed again.

    [0, h)               history: BOS, and the part of the prompt that sees no passage
    [h+R-f-p, h+R)       frame and passage, attending to a sink and to themselves
    [h+R, c+R)           the rest of the context

A context token behind h sees the passage that was in the slot when it was computed. When passages
are exchanged, the last e context tokens are computed again behind the new one: what the text is
about to say depends on the passage most.

Where an engine shares keys and values in whole blocks, a slot is made of them: R is rounded up so
that h+R is a multiple of a block, the positions in front of a passage hold its end once more (line
breaks there cost a reader more than a passage gains), and e is rounded up so that what is computed
again begins with a block. Without a passage there is no slot.

A reader answers best without a gap before the passage. So where there is a history, R is what the
first passage takes, and grows when one takes more: the tokens behind h, such as a question and the
answer so far, are then computed again at their new positions.
"""

from flashback.errors import SettingsError
from flashback.patterns.cost import StrideShape
from flashback.patterns.frame import Frame
from flashback.patterns.pattern import Boundary, ContextPattern, TargetLayout
from flashback.patterns.prompt import Ids, Layout, Prompt, View


class Slot(ContextPattern):
    """Most of the context is not computed again when passages are exchanged."""

    name = "slot"
    title = "slot"
    place = "in a slot behind the history"
    summary = "passages at reserved positions behind the history, exchanged in place"
    isolated = True
    targets = TargetLayout.IN_PLACE

    def arrange(self, at: Boundary) -> Prompt:
        """The context, with the framed passage in view of its last e tokens.

        The first passage is in view of all that is behind the history.

        Raises:
            SettingsError: the framed passage is longer than R.
        """
        if len(at.framed) > at.reserved:
            raise SettingsError(
                f"a passage of {len(at.framed)} tokens with its frame; the slot has {at.reserved}"
            )
        before = at.before
        if before is not None and not _has_room(before.layout, at):
            before = None
        layout = _layout(at) if before is None else before.layout
        return Prompt.with_views(at.context, _views(at, before, layout), layout)

    def reserved(self, passages: int, passage_tokens: int, frame: Frame) -> int:
        """R = k·m + f, without an echo."""
        return passages * passage_tokens + len(frame.before) + len(frame.after)

    def boundary_tokens(self, stride: StrideShape) -> int:
        """The last e tokens of the context, one if the passage stays."""
        return min(stride.recomputed, stride.context)


def _has_room(layout: Layout, at: Boundary) -> bool:
    """Whether a passage can stand where others stood."""
    in_blocks = at.block == 1 or bool(at.framed) == bool(layout.reserved)
    return len(at.framed) <= layout.reserved and in_blocks


def _layout(at: Boundary) -> Layout:
    # The last token of a context always sees the passage.
    history = min(max(at.history, at.bos), len(at.context) - 1)
    as_long = at.history > at.bos or (at.block > 1 and not at.framed)
    reserved = len(at.framed) if as_long else at.reserved
    reserved += -(history + reserved) % at.block if reserved else 0
    sink = at.frame.sink
    return Layout(history, reserved, sink[max(len(sink) - history, 0) :])


def _views(at: Boundary, before: Prompt | None, layout: Layout) -> tuple[View, ...]:
    passage = _filled(at.framed, layout.reserved) if at.block > 1 else at.framed
    if before is None:
        return (View(layout.history, passage),)
    if before.passage == passage:
        return before.views
    start = max(len(at.context) - at.recomputed, layout.history)
    start -= layout.position(start) % at.block
    kept = (view for view in before.views if view.start < start)
    return (*kept, View(start, passage))


def _filled(passage: Ids, length: int) -> Ids:
    """A passage with its end in front of it, once more or often enough."""
    times = -(-length // len(passage)) if passage else 0
    return (passage * times)[-length:] if times else ()
