"""A context pattern: one object that says where passages stand, and what follows from it.

The paper's context patterns differ in nothing but the order of tokens (section 3). Everything else
in FlashBack iterates over the registry (`flashback.patterns.registry`) and asks these objects.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from flashback.patterns.cost import Pass, StrideShape
from flashback.patterns.frame import Frame
from flashback.patterns.prompt import Ids, Prompt
from flashback.settings import FrameText


class TargetLayout(Enum):
    """How the targets of many strides of one window are packed for scoring and training."""

    SEQUENCES = auto()
    """Each stride is a sequence of its own; one whose prompt continues the last joins it."""
    BRANCHES = auto()
    """The shared context once, and each stride as a branch on its cache."""
    IN_PLACE = auto()
    """Passages on their own, and the context segment by segment."""


@dataclass(frozen=True)
class Boundary:
    """The input of a pattern at the start of a stride."""

    context: Ids
    """The text so far, beginning with its BOS tokens."""
    passage: Ids = ()
    """The retrieved tokens, without special tokens; empty: nothing was found."""
    frame: Frame = Frame()
    bos: int = 0
    """How many leading tokens of the context are BOS, and stay at its front."""
    reserved: int = 0
    """R, see `ContextPattern.reserved`."""
    history: int = 0
    """h: how many leading tokens of the context see no passage at reserved positions, at least
    `bos`. That of `before`, if there is one, stays."""
    recomputed: int = 1
    """e: how many of the context's last tokens are computed again where passages are exchanged."""
    before: Prompt | None = None
    """The prompt of the stride before; None at the first one, and after a jump."""
    prompt: int = 0
    """How many leading tokens of the context were not written by the reader."""
    block: int = 1
    """See `Capabilities.block`."""

    @property
    def framed(self) -> Ids:
        """The passage in its frame, without the echo."""
        return self.frame.around(self.passage)

    @property
    def echo(self) -> Ids:
        """The end of the context that the frame repeats."""
        return self.frame.echoed(
            self.context[self.bos if self.frame.echo_prompt else self.prompt :]
        )


class ContextPattern(ABC):
    """Where retrieved passages stand in a prompt."""

    name: ClassVar[str]
    """In settings, on the command line and in the API."""
    title: ClassVar[str]
    """In figures."""
    place: ClassVar[str] = ""
    """Where passages stand, in words that follow "a passage stands"; empty: nowhere."""
    summary: ClassVar[str]
    """One clause for lists."""
    retrieves: ClassVar[bool] = True
    """Whether passages are retrieved."""
    needs_training: ClassVar[bool] = False
    """Whether a reader must be trained before it reads passages there well."""
    default_frame: ClassVar[FrameText] = FrameText("Reference: ", "\n\n", 0)
    """For readers that were not trained with marking tokens; both texts are given."""
    echoes: ClassVar[bool] = False
    """Whether the frame's echo is used."""
    isolated: ClassVar[bool] = False
    """Whether passages stand at reserved positions, are prefilled without the text, and are
    exchanged in place. Needs an engine and a reader that support it."""
    targets: ClassVar[TargetLayout] = TargetLayout.SEQUENCES

    @abstractmethod
    def arrange(self, at: Boundary) -> Prompt:
        """The prompt of the stride that begins at a boundary."""

    def reserved(self, passages: int, passage_tokens: int, frame: Frame) -> int:
        """R: positions reserved for k passages of up to m tokens and their frame."""
        return 0

    def passes(self, stride: StrideShape) -> Iterator[Pass]:
        """The forward passes of a stride, without a jump."""
        passage = stride.passage if self.retrieves else 0
        apart = passage + stride.sink if self.isolated and not stride.known else 0
        if self.isolated and stride.first and stride.history:
            yield Pass(stride.history, 0, logits=1, batch=stride.batch)
        if apart and not stride.joint:
            yield Pass(apart, 0, logits=0, batch=stride.batch)
        prompt = stride.context + passage
        if stride.first:
            new = stride.context - stride.history if self.isolated else prompt
        else:
            new = self.boundary_tokens(stride)
        logits = new if stride.every_logit else 1
        joint = apart if stride.joint else 0
        yield Pass(new, prompt - new, logits, stride.batch, passage=joint)
        for length in range(prompt, prompt + stride.stride - 1):
            yield Pass(1, length, batch=stride.batch)

    def boundary_tokens(self, stride: StrideShape) -> int:
        """Tokens prefilled at a boundary behind a full cache, without an isolated passage's."""
        return 1  # all but the token that was chosen last is cached

    def __str__(self) -> str:
        return self.name
