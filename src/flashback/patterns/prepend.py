"""Pattern `prepend`: passages before the context, which moves with every new one (paper section 3).

Symbols: b BOS, c context with BOS, f frame, p passage tokens.

    [0, b)           BOS
    [b, b+f+p)       frame and passage
    [b+f+p, c+f+p)   rest of the context
"""

from flashback.patterns.cost import StrideShape
from flashback.patterns.pattern import Boundary, ContextPattern
from flashback.patterns.prompt import Prompt


class Prepend(ContextPattern):
    """The usual way: a new passage invalidates the cache of the whole context."""

    name = "prepend"
    title = "prepend"
    place = "in front of the text"
    summary = "passages before the text: each new one moves the text"

    def arrange(self, at: Boundary) -> Prompt:
        """BOS, framed passage, rest of the context."""
        return Prompt.plain(at.context[: at.bos] + at.framed + at.context[at.bos :])

    def boundary_tokens(self, stride: StrideShape) -> int:
        """The whole prompt, unless the passage stays."""
        return 1 if stride.known else stride.context + stride.passage
