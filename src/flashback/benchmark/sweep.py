"""A text that grows stride by stride: its context lengths, and what is retrieved at each."""

import math

from flashback.benchmark.bench_settings import SweepSettings
from flashback.errors import SettingsError
from flashback.readers.reader import Reader
from flashback.settings import FrameText, RetrievalSettings

_LONGEST_LENGTHS = 20
"""Characters of `--lengths`; Python refuses to parse a number of thousands of digits."""
_SAMPLE_EVERY = 384
"""The most tokens between two lengths of a sampled sweep, unless that takes more than five."""


def parse_lengths(settings: SweepSettings, frame: int = 0) -> range:
    """Context lengths at the boundaries.

    Contexts begin at FIRST tokens and end where a passage still fits LAST positions (T - m).

    Args:
        frame: tokens that stand around a passage in one of the arms: BOS, in a slot. A context that
            left no room for them would jump.

    Raises:
        SettingsError: not of that form, or no room for one stride.
    """
    text = settings.lengths
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and len(text) < _LONGEST_LENGTHS):
        raise SettingsError(f"--lengths={text!r}: expected FIRST:LAST in tokens, such as 512:1024")
    lengths = range(int(first), int(last) - settings.passage_tokens, settings.stride)
    if lengths and frame:
        lengths = range(lengths[0], lengths[-1] - frame + 1, settings.stride)
    if len(lengths) < 2 or int(first) < 4 * settings.stride:
        raise SettingsError(
            f"--lengths={text!r}: expected FIRST from {4 * settings.stride} and LAST at least "
            f"{settings.passage_tokens + frame + 2 * settings.stride} higher"
        )
    return lengths


def bare_retrieval(pattern: str, settings: SweepSettings) -> RetrievalSettings:
    """Passages with no words around them, as in the paper's test."""
    return RetrievalSettings(
        pattern,
        settings.stride,
        passage_tokens=settings.passage_tokens,
        frame=FrameText("", "", 0),
    )


def text_size(reader: Reader, lengths: range, settings: SweepSettings, frame: int = 0) -> int:
    """Number of tokens that the text needs.

    Args:
        frame: tokens around a passage.

    Raises:
        SettingsError: with a passage, they are more than the reader has positions for.
    """
    size = lengths[-1] + settings.stride
    needed = size + settings.passage_tokens + frame
    if needed > reader.window:
        raise SettingsError(
            f"--lengths={settings.lengths!r}: needs {needed} positions, but {reader.name} has "
            f"{reader.window}"
        )
    return size


def grid(lengths: range) -> list[int]:
    """A few of the lengths, the first and the last among them, for `sampled`: 3 to 5."""
    apart = math.ceil((lengths[-1] - lengths[0]) / _SAMPLE_EVERY)
    count = min(max(3, min(1 + apart, 5)), len(lengths))
    if count == 1:
        return [lengths[0]]
    return [lengths[round(i * (len(lengths) - 1) / (count - 1))] for i in range(count)]
