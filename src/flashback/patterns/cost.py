"""The forward passes of a stride, counted in tokens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """One forward pass. Symbols as in `flashback.benchmark.flops`."""

    new: int
    """n: tokens prefilled or decoded."""
    cached: int
    """c: tokens whose keys and values are cached."""
    logits: int = 1
    """k: positions whose logits are computed, which are the only ones the last layer is computed
    for; 0: keys and values only."""
    batch: int = 1
    """b: rows, each with n, c, d and k of its own."""
    passage: int = 0
    """d: tokens of a passage prefilled in the same pass; they are among the c."""

    @property
    def tokens(self) -> int:
        """d + n."""
        return self.passage + self.new


@dataclass(frozen=True)
class StrideShape:
    """A stride, by its lengths in tokens and by what the stride before it left in the cache."""

    context: int
    """Tokens of the context at the boundary."""
    stride: int
    """s."""
    passage: int
    """Tokens of passage and frame."""
    first: bool = False
    """Nothing is cached."""
    known: bool = False
    """The passage is that of the stride before; at reserved positions: its keys and values are
    cached."""
    recomputed: int = 1
    """e: the context's last tokens that are computed at a boundary where passages are exchanged at
    reserved positions; 1: the passage stays."""
    history: int = 0
    """h: tokens of the context before reserved positions, in a pass of their own at first."""
    sink: int = 0
    """b: tokens that a passage at reserved positions is computed behind."""
    behind_passage: bool = True
    """The stride before had a passage, so that its tokens stood behind one."""
    every_logit: bool = False
    """The boundary pass computes logits at every position, as the authors' code does."""
    batch: int = 1
    """b."""
    joint: bool = False
    """A passage at reserved positions shares the pass of the tokens that see it first."""
