"""How passages are exchanged by `flashback eval swap`, and when the question is asked."""

from dataclasses import dataclass
from enum import StrEnum

from flashback.declared import AUTO, CheckedSettings, setting
from flashback.errors import SettingsError
from flashback.questions.swap_cases import Variant

ALL = "all"
"""e: everything in view of a passage is computed again."""
_LARGEST = 1 << 20


class SwapForm(StrEnum):
    """The form of a text whose passage is exchanged."""

    CHAT = "chat"
    """A conversation: turns of the user, and the reply between them."""
    TEXT = "text"
    """Plain text; questions are `Question: ...` and `Answer:`."""


class AskedWhen(StrEnum):
    """Where the question stands, and with which passage it is computed."""

    BEHIND = "behind"
    """Behind the exchange."""
    BEFORE = "before"
    """Before it, only the answer behind it: within a text, or within an answer."""
    TWICE = "twice"
    """Before it, and again behind it."""
    ANSWERED = "answered"
    """Likewise, and the first passage's answer stands in the text."""

    @property
    def twice(self) -> bool:
        """Whether the question stands before and behind the exchange."""
        return self in (AskedWhen.TWICE, AskedWhen.ANSWERED)


@dataclass(frozen=True)
class Exchange:
    """Two passages of a case that stand in view one after the other."""

    old: Variant
    new: Variant

    @classmethod
    def named(cls, name: str) -> "Exchange":
        """One of `EXCHANGES`."""
        old, _, new = name.partition("-")
        return cls(Variant(old), Variant(new))

    @property
    def wanted(self) -> Variant:
        """Whose answer is right: the new passage's.

        An unrelated passage has none; the one that was never in view stands for it.
        """
        return self.new if self.new is not Variant.UNRELATED else _other(self.old)

    @property
    def rival(self) -> Variant:
        """Whose answer should not stay: the old passage's; if that has none, one never in view."""
        return _other(self.wanted)

    def __str__(self) -> str:
        return f"{self.old} -> {self.new}"


def _other(variant: Variant) -> Variant:
    return Variant.COUNTERFACTUAL if variant is Variant.GOLD else Variant.GOLD


EXCHANGES = ("gold-counterfactual", "counterfactual-gold", "unrelated-gold", "gold-unrelated")
USUAL_EXCHANGES = ("gold-counterfactual", "unrelated-gold", "gold-unrelated")


@dataclass(frozen=True)
class SwapSettings(CheckedSettings):
    """Which cases are asked, how, and what is exchanged."""

    form: str = setting(
        AUTO,
        "A conversation or plain text. auto: chat if the model has a chat template, else text.",
        choices=SwapForm,
        auto=True,
    )
    asked: AskedWhen = setting(
        AskedWhen.BEHIND,
        "Where the question stands: behind the exchange of passages; before it; before it and "
        "again behind it (twice); likewise, with the old passage's answer in the text (answered).",
    )
    distance: str = setting("128", "Tokens of other text before the exchange; several: 32,128,512.")
    recompute_tokens: str = setting(
        "1,16,64,all",
        "e: in a slot, the last tokens computed again at the exchange; all: all of them. 0: the "
        "default, 64, in chats 16.",
    )
    limit: int = setting(0, "Ask the first cases of each kind; 0: all.", low=0, high=1 << 30)
    seed: int = setting(
        0, "Decides the made-up cases, and where their text between begins.", low=0, high=1 << 62
    )
    max_new_tokens: int = setting(24, "Tokens of an answer at most.", low=1, high=1 << 14)

    @property
    def distances(self) -> tuple[int, ...]:
        """In ascending order, each once.

        Raises:
            SettingsError: they are no whole numbers, or there is nothing before the exchange.
        """
        found = sorted(set(_numbers("--distance", self.distance)))
        if found[0] == 0 and self.asked is not AskedWhen.BEFORE:
            raise SettingsError(
                f"--distance={self.distance!r}: found 0; expected 1 or more, or --asked='before'"
            )
        return tuple(found)

    @property
    def recomputed(self) -> tuple[int | None, ...]:
        """Every e, in ascending order; 0: the default; None: all.

        Raises:
            SettingsError: they are neither whole numbers nor all.
        """
        names = [one.strip() for one in self.recompute_tokens.split(",")]
        rest = ",".join(one for one in names if one != ALL)
        numbers = sorted(set(_numbers("--recompute-tokens", rest))) if rest else []
        return (*numbers, None) if ALL in names else tuple(numbers)


def _numbers(flag: str, text: str) -> list[int]:
    found = []
    for one in text.split(","):
        if not one.strip().isdecimal() or int(one) > _LARGEST:
            expected = "0 to 1048576, with commas between them"
            more = f", or {ALL}" if flag == "--recompute-tokens" else ""
            raise SettingsError(f"{flag}={text!r}: expected whole numbers from {expected}{more}")
        found.append(int(one))
    return found
