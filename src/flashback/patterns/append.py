"""Pattern `append`: passages behind the context, whose cache stays valid (paper section 3).

Symbols: c context, f frame and echo, p passage tokens.

    [0, c)       context
    [c, c+f+p)   frame, passage, echo
"""

from flashback.patterns.cost import StrideShape
from flashback.patterns.pattern import Boundary, ContextPattern, TargetLayout
from flashback.patterns.prompt import Prompt
from flashback.settings import FrameText


class Append(ContextPattern):
    """The paper's: the context stays where it is, and a reader is trained to read on behind."""

    name = "append"
    title = "append (FlashBack)"
    place = "behind the text"
    summary = "passages behind the text: its cache stays valid"
    needs_training = True
    # A bracket rarely comes next in a text, so that a cached frame is not mistaken for text.
    default_frame = FrameText(" [Reference: ", "]\n\n", 16)
    echoes = True
    targets = TargetLayout.BRANCHES

    def arrange(self, at: Boundary) -> Prompt:
        """Context, framed passage, echo."""
        if not at.passage:
            return Prompt.plain(at.context + at.framed)
        return Prompt.plain(at.context + at.framed + at.echo)

    def boundary_tokens(self, stride: StrideShape) -> int:
        """The passage, and the last s tokens anew if they stood behind another passage."""
        return stride.passage + (stride.stride if stride.behind_passage else 1)
