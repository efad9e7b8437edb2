"""The text so far, the part of it in view, and how much of the window it may take."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from flashback.errors import PromptTooLong, SettingsError
from flashback.patterns.prompt import Ids


def context_budget(window: int, passages: int, passage_tokens: int, frame: int, stride: int) -> int:
    """B = window - (k·m + f) - s: the longest context that always fits, the same for every pattern.

    Raises:
        SettingsError: nothing useful would fit.
    """
    budget = window - (passages * passage_tokens + frame) - stride
    if budget // 2 <= stride:
        raise SettingsError(
            f"the reader's window of {window} tokens leaves {budget} for the context beside "
            f"{passages} x {passage_tokens} passage, {frame} frame and {stride} new tokens, but "
            f"{2 * stride + 2} are needed; lower --passage-tokens, --passages or --stride"
        )
    return budget


@dataclass
class Context:
    """The text so far and the part of it that the reader sees.

    When the visible part no longer fits the budget B, it *jumps*: BOS and the last B/2 tokens
    remain. Jumping that far at once keeps the cache valid until the next jump.
    """

    bos: Ids
    """What the text begins with and keeps in front of it after a jump."""
    budget: int
    """B, tokens."""
    ids: list[int]
    """All tokens, from the first."""
    start: int = 0
    """The first visible token; 0 before any jump."""
    cut: int = 0
    """Tokens of the prompt behind BOS that were cut away before the text began."""
    jumps: list[int] = field(default_factory=list)
    """The lengths of the text at which the context jumped."""

    @classmethod
    def of_prompt(cls, ids: Sequence[int], bos: Ids, budget: int, truncate: bool) -> "Context":
        """Begin with a prompt; one over the budget is refused, or cut from the left.

        Raises:
            PromptTooLong: the prompt is over the budget and `truncate` is false.
            SettingsError: the prompt has no tokens.
        """
        if not ids:
            raise SettingsError("the prompt is empty; expected at least one token of text")
        if tuple(ids[: len(bos)]) != bos:
            bos = ()
        if len(ids) > budget and not truncate:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens, but only {budget} fit the reader's window "
                "beside passages and new tokens; shorten it, or use --truncate=True to keep its end"
            )
        cut = max(len(ids) - budget, 0)
        return cls(bos, budget, [*bos, *ids[len(bos) + cut :]], cut=cut)

    @property
    def visible(self) -> Ids:
        if self.start == 0:
            return tuple(self.ids)
        return self.bos + tuple(self.ids[self.start :])

    def visible_of(self, length: int) -> int:
        """How many visible tokens are of the text's first `length` ones, BOS included."""
        if self.start == 0:
            return length
        return len(self.bos) + max(length - self.start, 0)

    def jump_if_full(self) -> bool:
        """Move the visible part on if it is over the budget; say whether it moved."""
        if len(self.visible) <= self.budget:
            return False
        self.start = len(self.ids) - self.budget // 2
        self.jumps.append(len(self.ids))
        return True
