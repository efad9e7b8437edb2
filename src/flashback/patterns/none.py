"""Pattern `none`: no passages.

[0, c)   context
"""

from flashback.patterns.pattern import Boundary, ContextPattern
from flashback.patterns.prompt import Prompt


class NoPassages(ContextPattern):
    """Nothing is retrieved."""

    name = "none"
    title = "no retrieval"
    summary = "nothing is retrieved"
    retrieves = False

    def arrange(self, at: Boundary) -> Prompt:
        """The context alone."""
        return Prompt.plain(at.context)
