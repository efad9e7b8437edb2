"""Pattern `slot`: passages at reserved positions before the context, exchanged in place (ours).

Symbols: R = k·m + f reserved positions, f frame, p passage tokens, c context.

    [R-f-p, R)   frame and passage, attending to itself alone
    [R, R+c)     context

A context token sees the passage that was in the slot when it was computed. At a boundary only the
last context token is computed again, since the next token is predicted from it.
"""

from flashback.errors import SettingsError
from flashback.patterns.frame import Frame
from flashback.patterns.pattern import Boundary, ContextPattern, TargetLayout
from flashback.patterns.prompt import Prompt, View


class Slot(ContextPattern):
    """Neither the context nor a known passage is computed again when passages are exchanged."""

    name = "slot"
    title = "slot"
    place = "in a slot before the text"
    summary = "passages at reserved positions before the text"
    isolated = True
    targets = TargetLayout.IN_PLACE

    def arrange(self, at: Boundary) -> Prompt:
        """The context, with the framed passage in view of its last token.

        The first passage is in view of the whole context.

        Raises:
            SettingsError: the framed passage is longer than R.
        """
        if len(at.framed) > at.reserved:
            raise SettingsError(
                f"a passage of {len(at.framed)} tokens with its frame; the slot has {at.reserved}"
            )
        return Prompt.with_views(at.context, _views(at), at.reserved)

    def reserved(self, passages: int, passage_tokens: int, frame: Frame) -> int:
        """R = k·m + f, without an echo."""
        return passages * passage_tokens + len(frame.before) + len(frame.after)


def _views(at: Boundary) -> tuple[View, ...]:
    if at.before is None:
        return (View(0, at.framed),)
    if at.before.passage == at.framed:
        return at.before.views
    last = len(at.context) - 1
    kept = (view for view in at.before.views if view.start < last)
    return (*kept, View(last, at.framed))
