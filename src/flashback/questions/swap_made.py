"""Made-up cases for `flashback eval swap`: templates with names and values, drawn by a seed.

Lookups ask for a value that stands in the passage. Two-step questions ask for what follows from
it: which of two is more, a sum, the next day, or the one whom a word stands for; the value itself
is never the answer.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Any

from flashback.questions.metrics import stands_in
from flashback.questions.swap_cases import Case, CaseFile, Variant

MADE = 200
"""Cases of each kind."""
KINDS = ("lookup", "two-step")
_PERSON = "person"
_KNOWN = (Variant.GOLD, Variant.COUNTERFACTUAL)
Template = dict[str, Any]


def made_cases(seed: int = 0) -> CaseFile:
    """`MADE` cases of each kind, in turns. The same seed gives the same ones."""
    pairs = zip(*(_of_kind(kind, seed) for kind in KINDS), strict=True)
    cases = tuple(case for pair in pairs for case in pair)
    text = json.dumps([_plain(case) for case in cases], sort_keys=True)
    return CaseFile(f"made-up, seed {seed}", hashlib.sha256(text.encode()).hexdigest(), cases)


def filler_text() -> str:
    """Some pages about a walk: no names, no numbers, and nothing that made-up cases ask for."""
    return (files(__package__) / "swap_texts" / "filler.txt").read_text("utf-8")


def _plain(case: Case) -> dict[str, Any]:
    return {"question": case.question, "passages": case.passages, "answers": case.answers}


@cache
def _texts() -> dict[str, Any]:
    text = (files(__package__) / "swap_texts" / "templates.json").read_text("utf-8")
    return dict(json.loads(text))


def _of_kind(kind: str, seed: int) -> Iterator[Case]:
    templates, seen = _texts()[kind], set[str]()
    order = list(range(len(templates)))
    random.Random(f"order {seed} {kind}").shuffle(order)
    for number in range(MADE):
        at = order[number % len(order)]
        for attempt in count():
            own = _case(kind, at, random.Random(f"{seed} {kind} {number} {attempt}"), number)
            if own is not None and own.passages[Variant.GOLD] not in seen:
                seen.add(own.passages[Variant.GOLD])
                yield own
                break


def _case(kind: str, at: int, chance: random.Random, number: int) -> Case | None:
    """A case of the template `at`; None: something came together that does not belong together."""
    templates = _texts()[kind]
    made = _Draw(chance).made(templates[at])
    others = [one for one in range(len(templates)) if one != at]
    unrelated = _Draw(chance).made(templates[chance.choice(others)]).passages[Variant.GOLD]
    answers = made.answers
    apart = not any(stands_in(answers[one], answers[other][0]) for one, other in _PAIRS)
    if not apart or stands_in([*answers[Variant.GOLD], *answers[_KNOWN[1]]], unrelated):
        return None
    passages = {**made.passages, Variant.UNRELATED: unrelated}
    return Case(f"{kind} {number + 1}", kind, made.question, passages, answers)


_PAIRS = (_KNOWN, _KNOWN[::-1])


@dataclass(frozen=True)
class _Made:
    """A filled template."""

    question: str
    passages: dict[Variant, str]
    answers: dict[Variant, tuple[str, ...]]


@dataclass
class _Draw:
    """Names and values for one template, none of them twice."""

    chance: random.Random
    taken: set[str] = field(default_factory=set)
    people: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What else each person is called."""

    def made(self, template: Template) -> _Made:
        """Fill a template twice: with a value, and with another one."""
        names = {name: self.name(kind) for name, kind in template["draw"].items()}
        rule = _RULES[template.get("rule", "is")]
        filled = dict(zip(_KNOWN, rule(self, template, names), strict=True))
        passages = {
            one: template["passage"].format(**names, value=value, other=other)
            for one, (value, other, _) in filled.items()
        }
        answers = {
            one: (answer, *self.people.get(answer, ())) for one, (_, _, answer) in filled.items()
        }
        return _Made(template["question"].format(**names), passages, answers)

    def name(self, kind: str) -> str:
        """One that was not taken yet."""
        if kind == _PERSON:
            first, last = self.name("first"), self.name("last")
            self.people[f"{first} {last}"] = (first, last)
            return f"{first} {last}"
        names = _texts()["names"][kind]
        drawn = self.chance.choice([one for one in names if one not in self.taken])
        self.taken.add(drawn)
        return str(drawn)

    def number(self, low: int, high: int) -> int:
        """One from `low` to `high`, both included."""
        return self.chance.randint(low, high)


Filled = list[tuple[str, str, str]]
"""The value, another text beside it, and the answer: for the gold, then for the other passage."""
Names = dict[str, str]


def _is(draw: _Draw, template: Template, names: Names) -> Filled:
    """The value is the answer."""
    kind = template["value"]
    if isinstance(kind, list):
        numbers = draw.chance.sample(range(kind[0], kind[1] + 1), 2)
        values = [str(one) for one in numbers]
    else:
        values = [draw.name(kind), draw.name(kind)]
    return [(value, "", value) for value in values]


def _compared(sign: int) -> Callable[[_Draw, Template, Names], Filled]:
    """The first of two if its value is less (-1) or more (1) than the other, else the second."""

    def fill(draw: _Draw, template: Template, names: Names) -> Filled:
        low, high = template["value"]
        third = (high - low) // 3
        other = draw.number(low + third, high - third)
        values = [draw.number(low, other - third // 2), draw.number(other + third // 2, high)]
        draw.chance.shuffle(values)
        first, second = (names.get(one, one) for one in template["of"])
        return [
            (str(value), str(other), first if (value - other) * sign > 0 else second)
            for value in values
        ]

    return fill


def _calculated(result: Callable[[int, int], int]) -> Callable[[_Draw, Template, Names], Filled]:
    """What the value and a second number make."""

    def fill(draw: _Draw, template: Template, names: Names) -> Filled:
        low, high = template["value"]
        other = draw.number(*template["other"])
        values = draw.chance.sample(range(low, high + 1), 2)
        return [(str(value), str(other), str(result(value, other))) for value in values]

    return fill


def _later(draw: _Draw, template: Template, names: Names) -> Filled:
    """Some days behind a day of the week."""
    days = _texts()["names"]["weekday"]
    chosen = draw.chance.sample(range(7), 2)
    after = template["other"][0]
    return [(days[day], "", days[(day + after) % 7]) for day in chosen]


def _mapped(draw: _Draw, template: Template, names: Names) -> Filled:
    """What the value stands for."""
    pairs = [(key.format(**names), one.format(**names)) for key, one in template["of"].items()]
    draw.chance.shuffle(pairs)
    return [(value, "", answer) for value, answer in pairs]


_RULES: dict[str, Callable[[_Draw, Template, Names], Filled]] = {
    "is": _is,
    "less": _compared(-1),
    "more": _compared(1),
    "plus": _calculated(lambda value, other: value + other),
    "minus": _calculated(lambda value, other: value - other),
    "times": _calculated(lambda value, other: value * other),
    "later": _later,
    "map": _mapped,
}
