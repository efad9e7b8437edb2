"""The frame of a passage: marking tokens, plain text, or nothing."""

from dataclasses import dataclass

from flashback.patterns.prompt import Ids


@dataclass(frozen=True)
class Frame:
    """The ids before and after a passage."""

    before: Ids = ()
    after: Ids = ()
    echo: int = 0
    """How many of the context's last tokens are repeated behind an appended passage, so that the
    continuation has its own text right before it."""
    echo_prompt: bool = True
    """Whether tokens of the prompt are repeated, too; if not, those written since."""
    no_passage: Ids = ()
    """The ids in its place if there is no passage."""
    sink: Ids = ()
    """What a passage at reserved positions is computed behind."""

    def __len__(self) -> int:
        """Tokens added to a passage, the echo included."""
        return len(self.before) + len(self.after) + self.echo

    def around(self, passage: Ids) -> Ids:
        """The framed passage, without the echo; for an empty one what stands in its place."""
        return self.before + passage + self.after if passage else self.no_passage

    def echoed(self, context: Ids) -> Ids:
        """The end of the context that is repeated."""
        return context[max(len(context) - self.echo, 0) :]
