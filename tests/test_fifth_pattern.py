"""A pattern that a test registers is scored, listed and trained like those that ship."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from families import tiny_model
from flashback.cli.perplexity import chosen_patterns, untrained_rows
from flashback.evaluation.adapted_readers import AdaptedReaders
from flashback.evaluation.arms import adapter_arms
from flashback.evaluation.evaluate import EvaluationSet, evaluate
from flashback.patterns.frame import Frame
from flashback.patterns.pattern import Boundary, ContextPattern, TargetLayout
from flashback.patterns.prompt import Prompt
from flashback.patterns.registry import PATTERNS
from flashback.readers.lora_settings import Marks
from flashback.scoring.examples import Arrangement
from flashback.scoring.lookup import Found
from flashback.scoring.targets import TargetScorer
from flashback.training.model_card import model_card
from flashback.training.reproduce import recipes
from flashback.training.train import train
from tiny_readers import tiny_reader
from trainings import EXAMPLES, RETRIEVAL, WINDOWS, run_with

LAST = 5
"""Context tokens behind the passage."""


class Inside(ContextPattern):
    """Passages a few tokens before the end of the context."""

    name = "inside"
    title = "inside"
    place = "inside the text"
    summary = "passages before the last few tokens"

    def arrange(self, at: Boundary) -> Prompt:
        return Prompt.plain(at.context[:-LAST] + at.framed + at.context[-LAST:])


class Twice(ContextPattern):
    """Passages behind the context, and once more."""

    name = "twice"
    title = "twice"
    place = "behind the text, twice,"
    summary = "passages twice"
    targets = TargetLayout.BRANCHES

    def arrange(self, at: Boundary) -> Prompt:
        return Prompt.plain(at.context + at.framed + at.framed)


@pytest.fixture(params=[Inside, Twice])
def pattern(request: pytest.FixtureRequest) -> Iterator[ContextPattern]:
    new: ContextPattern = request.param()
    PATTERNS.register(new.name, new)
    yield new
    del PATTERNS[new.name]


@torch.no_grad()
def test_its_targets_score_as_its_prompts_say(pattern: ContextPattern) -> None:
    model, frame = tiny_model("llama"), Frame((7, 8), (9,))
    found = TargetScorer(model).log_probs(EXAMPLES, Arrangement(pattern.name, frame))
    for example, scores in zip(EXAMPLES, found, strict=True):
        for cut, passage, own in zip(example.window.cuts, example.passages, scores, strict=True):
            context, targets = example.window.context(cut), example.window.targets(cut)
            prompt = pattern.arrange(Boundary(context, passage, frame, example.window.bos)).arranged
            logits = model(input_ids=torch.tensor([prompt + targets[:-1]])).logits[0]
            expected = logits[-len(targets) :].log_softmax(-1)[range(len(targets)), list(targets)]
            assert (own - expected).abs().max() <= 1e-5


def test_it_is_listed_evaluated_and_trained(pattern: ContextPattern, tmp_path: Path) -> None:
    reader = tiny_reader()
    names = chosen_patterns(reader, [])
    assert names[-1] == pattern.name
    arms = untrained_rows(reader, names, shortened=False)
    assert f"{pattern.name} (text)" in [arm.name for arm in arms]
    assert [one.marks for one in recipes(reader) if one.pattern == pattern.name] == [
        Marks.NONE,
        Marks.TRAINED,
    ]

    run = run_with(retrieval=replace(RETRIEVAL, pattern=pattern.name), steps=2)
    card = train(tiny_reader(), EXAMPLES, run, tmp_path / "A")
    assert card.pattern == pattern.name
    assert f"passage {pattern.place}" in model_card(card)
    arms += adapter_arms(tmp_path / "A", [pattern.name])
    nothing = tuple(Found(((),) * len(e.passages), (0,) * 4, (False,) * 4) for e in EXAMPLES)
    (table,) = evaluate(
        arms, [EvaluationSet(tuple(EXAMPLES), nothing, WINDOWS)], AdaptedReaders(tiny_reader)
    )
    scored = {row.arm.name: row.perplexity.value for row in table.rows}
    assert f"{pattern.name} + LoRA, trained marks" in scored
    assert len(set(scored.values())) == len(scored)
