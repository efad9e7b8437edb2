"""The frames in which untrained rows are compared."""

from enum import StrEnum


class FrameKind(StrEnum):
    """The frame around a passage."""

    BARE = "bare"
    """Nothing."""
    TEXT = "text"
    """The pattern's own text, without an echo."""
    ECHO = "text, echo"
    """The pattern's own text and echo: the context's last tokens repeated behind an appended
    passage."""
    EOS = "eos"
    """An end-of-text token in front, as the authors' tokenizer puts one before every passage."""
    MARKS = "marks"
    """The reader's marking tokens."""
