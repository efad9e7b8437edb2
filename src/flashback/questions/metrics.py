"""How good an answer is: exact match and F1 as SQuAD computes them, and substring match."""

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from flashback.corpus.characters import UNSPACED
from flashback.errors import SettingsError

_UNSPACED = re.compile(f"[{UNSPACED}]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class AnswerScores:
    """The scores of one answer, in per cent, as SQuAD's."""

    exact_match: float
    f1: float
    substring: float


def check_metrics() -> None:
    """Refuse to begin without the library that scores answers.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import torchmetrics.functional.text  # noqa: F401
    except ImportError:
        raise SettingsError(
            "eval qa needs torchmetrics; pip install '.[eval]' in a clone of the project"
        ) from None


def scores_of(written: str, answers: Sequence[str]) -> AnswerScores:
    """The scores of what was written: the best over all right answers."""
    from torchmetrics.functional.text import squad

    right = {"answers": {"answer_start": [0] * len(answers), "text": list(answers)}, "id": "0"}
    found = squad([{"prediction_text": written, "id": "0"}], [right])
    return AnswerScores(
        float(found["exact_match"]), float(found["f1"]), 100.0 * stands_in(answers, written)
    )


def stands_in(answers: Sequence[str], text: str) -> bool:
    """Whether an answer stands in a text, both normalized: as whole words, where there are any."""
    return place_of(answers, text) is not None


def place_of(answers: Sequence[str], text: str) -> int | None:
    """Where the first of the answers stands in the normalized text; None: none of them does."""
    within = normalized(text)
    places = [_place(answer, within) for answer in map(normalized, answers) if answer]
    return min((place for place in places if place >= 0), default=None)


def _place(answer: str, text: str) -> int:
    if _UNSPACED.search(answer):
        return text.find(answer)
    return f" {text} ".find(f" {answer} ")


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words.

    That is SQuAD's rule, which only knows the punctuation of ASCII.
    """
    plain = "".join(one for one in text.lower() if not _is_punctuation(one))
    return " ".join(_ARTICLES.sub(" ", plain).split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character)[0] == "P"
