"""Where a text may be parted: behind sentences, never within what readers see as one character."""

import re
import unicodedata

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
)
"""Scripts without spaces between words, Korean among them: the inside of a character class."""
SENTENCE = re.compile(
    r".+?(?:[.!?…؟۔।॥።།][\"'”’»)\]]*(?=\s)|(?:[。！？｡។။]|．(?!\d))[\"'”’»)\]」』）】〉》〕”’]*"
    rf"|[!?…⋯]+[\"'”’»)\]」』）】〉》〕]*(?=[{UNSPACED}])|\n[ \t]*\n|\Z)\s*",
    re.DOTALL,
)
"""A sentence and the white space behind it; matches tile a text."""
_EXTENDS = re.compile(
    "[\u0e33\u0eb3\u1160-\u11ff\u200c\u200d\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"
)
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]+$")
_BREAKS = tuple(map(re.compile, (r"\n[ \t]*\n", r"[.!?]\s|[。！？｡]", r"\s")))
"""Better places first: between paragraphs, sentences, words."""


def best_break(text: str) -> int:
    """The last good place to part a text of which more will come, in its second half."""
    half = len(text) // 2
    for pattern in _BREAKS:
        if ends := [match.end() for match in pattern.finditer(text, half)]:
            return ends[-1]
    return whole_characters(text, 0, len(text) - 1)


def whole_characters(text: str, begin: int, end: int) -> int:
    """The last place up to `end`, behind `begin`, that parts no character from its marks.

    If there is none, `end`, or the first place behind `begin`.
    """
    end = max(end, begin + 1)
    for at in range(end, begin, -1):
        if at >= len(text) or _is_between_characters(text, begin, at):
            return at
    return end


def _is_between_characters(text: str, begin: int, at: int) -> bool:
    """Grapheme boundaries (Unicode annex 29), but for rare scripts; `begin` is one."""
    before, after = text[at - 1], text[at]
    if unicodedata.category(after)[0] == "M" or _EXTENDS.match(after) or before == "\u200d":
        return False
    if not _FLAG.match(after):
        return True
    flags = _FLAG.search(text, begin, at)  # two letters make a flag
    return flags is None or len(flags[0]) % 2 == 0
