"""The promise of packing: scores and gradients equal those of sequences that are run one by one."""

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from families import BY_COLUMN, FAMILIES, SLIDING, SLOTTED, VOCABULARY, tiny_model
from flashback.corpus.documents import Document
from flashback.engines.local import LocalEngine
from flashback.patterns.frame import Frame
from flashback.patterns.prompt import Ids, Layout, Prompt, View
from flashback.patterns.registry import PATTERNS
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Cut, Window
from recompute import cached_scores, logits_with_views

TOLERANCE = 1e-5
"""Largest allowed difference of a log-probability, and of a gradient relative to its norm."""
MARKS = (VOCABULARY - 2, VOCABULARY - 1)
MARKING = Frame((MARKS[0],), (MARKS[1],))
PACKING = tuple(family for family in FAMILIES if family not in SLIDING)
EXACT = [
    (family, pattern)
    for family in FAMILIES
    for pattern in PATTERNS
    if pattern != "slot" or family in SLOTTED
] + [(family, "append") for family in BY_COLUMN]
DOCUMENT = Document("d", "A title", "never read here")


@cache
def shared_model(family: str) -> nn.Module:
    """For tests that leave no gradients behind."""
    return tiny_model(family)


def tokens(drawn: random.Random, count: int) -> Ids:
    return tuple(drawn.choices(range(2, 258), k=count))


@cache
def learning_model(family: str) -> nn.Module:
    """For gradients. Those of OPT jump where its ReLU bends: in float32 rounding reaches there."""
    model: nn.Module = tiny_model(family)
    return model.double() if family == "opt" else model


@st.composite
def made_up_examples(draw: st.DrawFn) -> Example:
    """A window of up to about a hundred tokens; passages ragged, repeated and missing."""
    drawn = random.Random(draw(st.integers(0, 1000)))
    bos = draw(st.integers(0, 1))
    stride = draw(st.integers(1, 8))
    first = draw(st.integers(1, 60))
    count = draw(st.integers(1, 5))
    rest = draw(st.integers(0, 2))  # a window may go on behind its last target
    ids = (0,) * bos + tokens(drawn, first + count * stride + rest - bos)
    boundaries = [first + stride * number for number in range(count)]
    shared = draw(st.sampled_from([True, True, False]))
    starts = [0 if shared else draw(st.integers(0, boundary - 1)) for boundary in boundaries]
    passages = [tokens(drawn, draw(st.integers(0, 24)))]
    while len(passages) < count:
        kind = draw(st.sampled_from(["new", "new", "same", "none"]))
        new = tokens(drawn, draw(st.integers(1, 24))) if kind == "new" else ()
        passages.append(passages[-1] if kind == "same" else new)
    cuts = tuple(map(Cut, boundaries, starts))
    return Example(
        Window(DOCUMENT, ids, bos, cuts, stride),
        tuple(passages),
        recomputed=draw(st.sampled_from([1, 4, 16])),
        history=draw(st.integers(0, 30)),
    )


EXAMPLES = st.lists(made_up_examples(), min_size=1, max_size=3)
FRAMES = st.sampled_from(
    [MARKING, Frame(), Frame((7, 8), (9,), echo=6), Frame(echo=3), Frame((7,), sink=(0, 5))]
)
FORBIDDEN = st.sampled_from([(), MARKS])
APPENDED = Arrangement("append", MARKING, MARKS)
BATCH_TOKENS = st.sampled_from([1, 40, 150, 2048])


def even_example(
    cuts: int, *, first: int = 20, stride: int = 4, passage: int = 9, seed: int = 0
) -> Example:
    """A window with BOS, every passage of the same length."""
    drawn = random.Random(seed)
    ids = (0, *tokens(drawn, first + cuts * stride - 1))
    boundaries = tuple(Cut(first + stride * number) for number in range(cuts))
    window = Window(DOCUMENT, ids, 1, boundaries, stride)
    return Example(window, tuple(tokens(drawn, passage) for _ in range(cuts)))


def prompts(example: Example, arrangement: Arrangement) -> Iterator[tuple[Ids, Ids]]:
    """What each cut's targets are given, and the targets: from the definitions alone."""
    window, frame = example.window, arrangement.frame
    bos, ids = window.bos, window.ids
    for cut, passage in zip(window.cuts, example.passages, strict=True):
        front, rest = ids[:bos], ids[max(cut.start, bos) : cut.boundary]
        framed = (*frame.before, *passage, *frame.after) if passage else ()
        echo = rest[-frame.echo :] if passage and frame.echo else ()
        prompt = {
            "none": front + rest,
            "prepend": front + framed + rest,
            "append": front + rest + framed + echo,
        }[arrangement.pattern]
        yield prompt, ids[cut.boundary : cut.boundary + window.stride]


def layout_for(
    example: Example, history: int, room: int, arrangement: Arrangement, passage: Ids
) -> Layout:
    """Behind a history, what the passage takes; to the end of a block."""
    if example.history > example.window.bos or (arrangement.block > 1 and not passage):
        room = len(passage)
    while room and (history + room) % arrangement.block:
        room += 1
    sink = arrangement.frame.sink
    return Layout(history, room, sink[max(len(sink) - history, 0) :])


def slot_prompts(example: Example, arrangement: Arrangement) -> Iterator[tuple[Prompt, Ids]]:
    """The same with passages in a slot: the text before a cut's last target, and the targets."""
    window, stride, frame = example.window, example.window.stride, arrangement.frame
    framed = [(*frame.before, *one, *frame.after) if one else () for one in example.passages]
    room = max(map(len, example.passages)) + len(frame.before) + len(frame.after)
    grows = all(cut.start <= window.bos for cut in window.cuts)
    views: list[View] = []
    layout = Layout()
    for cut, passage in zip(window.cuts, framed, strict=True):
        context = window.ids[: window.bos] + window.ids[max(cut.start, window.bos) : cut.boundary]
        goes = arrangement.block > 1 and bool(passage) != bool(layout.reserved)
        if not (grows and views) or len(passage) > layout.reserved or goes:
            history = min(max(example.history, window.bos), len(context) - 1)
            layout = layout_for(example, history, room, arrangement, passage)
            views = []
        if arrangement.block > 1:
            passage = (passage * 99)[len(passage) * 99 - layout.reserved :]
        if not views:
            views = [View(history, passage)]
        elif passage != views[-1].passage:
            start = max(len(context) - example.recomputed, history)
            while layout.position(start) % arrangement.block:
                start -= 1
            views = [*(view for view in views if view.start < start), View(start, passage)]
        targets = window.ids[cut.boundary : cut.boundary + stride]
        yield Prompt.with_views(context + targets[:-1], views, layout), targets


def in_a_slot(model: Any, example: Example, arrangement: Arrangement) -> Tensor:
    """The reference: one plain pass with a block mask, or one for each cut."""
    rows = []
    for prompt, targets in slot_prompts(example, arrangement):
        logits = logits_with_views(model, prompt)[-len(targets) :]
        chances = logits.index_fill(-1, torch.tensor(arrangement.forbidden).long(), -torch.inf)
        rows.append(chances.log_softmax(-1)[range(len(targets)), list(targets)])
    return torch.cat(rows).view(-1, example.window.stride)


def separately(
    model: nn.Module, examples: Sequence[Example], arrangement: Arrangement
) -> list[Tensor]:
    """The reference: every stride a sequence of its own, in a plain pass with all logits."""
    if arrangement.pattern == "slot":
        return [in_a_slot(model, example, arrangement) for example in examples]
    scores = []
    for example in examples:
        rows = []
        for prompt, targets in prompts(example, arrangement):
            ids = torch.tensor([prompt + targets[:-1]])
            logits = model(input_ids=ids, use_cache=False).logits[0, -len(targets) :]
            never = torch.zeros(VOCABULARY, dtype=torch.bool)
            never[list(arrangement.forbidden)] = True
            chances = logits.masked_fill(never, -torch.inf).log_softmax(-1)
            rows.append(chances[range(len(targets)), list(targets)])
        scores.append(torch.stack(rows))
    return scores


def packed(
    model: nn.Module, examples: Sequence[Example], arrangement: Arrangement, batch: int = 2048
) -> list[Tensor]:
    return TargetScorer(model, batch).log_probs(examples, arrangement)


def check_scores(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= TOLERANCE


def gradient(model: nn.Module, scores: Sequence[Tensor]) -> Tensor:
    """Of a loss that weighs every target differently, by all parameters as one vector."""
    flat = torch.cat([score.flatten() for score in scores])
    weights = 0.5 + torch.arange(len(flat)).sin().square()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = torch.autograd.grad(-(weights * flat).mean(), trained, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def check_gradients(
    model: nn.Module, examples: Sequence[Example], arrangement: Arrangement, batch: int = 2048
) -> None:
    found = packed(model, examples, arrangement, batch)
    expected = separately(model, examples, arrangement)
    check_scores(found, expected)
    wanted = gradient(model, expected)
    assert wanted.norm() > 0
    assert (gradient(model, found) - wanted).norm() <= TOLERANCE * wanted.norm()


@pytest.mark.parametrize(("family", "pattern"), EXACT)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(examples=EXAMPLES, frame=FRAMES, forbidden=FORBIDDEN, batch=BATCH_TOKENS)
@torch.no_grad()
def test_scores_equal_those_of_separate_sequences(
    family: str, pattern: str, examples: list[Example], frame: Frame, forbidden: Ids, batch: int
) -> None:
    model = shared_model(family)
    arrangement = Arrangement(pattern, frame, forbidden)
    expected = separately(model, examples, arrangement)
    check_scores(packed(model, examples, arrangement, batch), expected)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(examples=EXAMPLES, block=st.integers(2, 9))
@torch.no_grad()
def test_a_slot_made_of_blocks_is_scored_as_separate_sequences(
    examples: list[Example], block: int
) -> None:
    model = shared_model("llama")
    arrangement = Arrangement("slot", Frame((7,), (8,)), block=block)
    check_scores(packed(model, examples, arrangement), separately(model, examples, arrangement))


@pytest.mark.parametrize(("family", "pattern"), EXACT)
@torch.no_grad()
def test_long_windows_equal_separate_sequences(family: str, pattern: str) -> None:
    """Several times any sliding window; a passage at every boundary, in several batches."""
    example = even_example(12, first=24, stride=9, passage=30)
    arrangement = Arrangement(pattern, MARKING, MARKS)
    expected = separately(shared_model(family), [example], arrangement)
    check_scores(packed(shared_model(family), [example], arrangement, 200), expected)


@pytest.mark.parametrize(("family", "pattern"), EXACT)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(examples=EXAMPLES, frame=FRAMES, forbidden=FORBIDDEN, batch=BATCH_TOKENS)
def test_gradients_equal_those_of_separate_sequences(
    family: str, pattern: str, examples: list[Example], frame: Frame, forbidden: Ids, batch: int
) -> None:
    arrangement = Arrangement(pattern, frame, forbidden)
    check_gradients(learning_model(family), examples, arrangement, batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_appended_passages_equal_those_of_separate_sequences(family: str) -> None:
    examples = [even_example(6, passage=11), even_example(3, first=1, passage=0, seed=1)]
    check_gradients(learning_model(family), examples, APPENDED, 60)


@pytest.mark.parametrize("family", PACKING)
@pytest.mark.parametrize("pattern", ["none", "append"])
def test_a_boundary_behind_the_first_token_alone(family: str, pattern: str) -> None:
    """The context is one token, so that nothing of it is left to share."""
    example = even_example(1, first=1)
    check_gradients(learning_model(family), [example], Arrangement(pattern, MARKING))


QUERY_AND_VALUE = {
    "llama": ["q_proj", "v_proj"],
    "opt": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"],
}


@cache
def lora_model(family: str, *, train_marks: bool, dropout: float = 0.0) -> nn.Module:
    """A frozen tiny model under LoRA whose weights are all nonzero."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=dropout,
        target_modules=QUERY_AND_VALUE[family],
        fan_in_fan_out=family == "gpt2",
        trainable_token_indices=list(MARKS) if train_marks else None,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(1)
    with warnings.catch_warnings():  # PEFT asks transformers by an old name
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing.", FutureWarning)
        model: nn.Module = get_peft_model(tiny_model(family), config)
    if family == "opt":
        model.double()  # as in `learning_model`
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model.train(dropout > 0)


@pytest.mark.parametrize("family", QUERY_AND_VALUE)
@pytest.mark.parametrize("train_marks", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(examples=EXAMPLES, forbidden=FORBIDDEN, batch=BATCH_TOKENS)
def test_an_adapters_gradients_equal_those_of_separate_sequences(
    family: str,
    train_marks: bool,
    pattern: str,
    examples: list[Example],
    forbidden: Ids,
    batch: int,
) -> None:
    model = lora_model(family, train_marks=train_marks)
    check_gradients(model, examples, Arrangement(pattern, MARKING, forbidden), batch)


@pytest.mark.parametrize("family", QUERY_AND_VALUE)
@pytest.mark.parametrize("pattern", ["prepend", "append"])
def test_every_part_of_an_adapter_is_trained(family: str, pattern: str) -> None:
    """LoRA's A and B of every layer, and the rows of both marks; the base stays as it is."""
    model = lora_model(family, train_marks=True)
    arrangement = Arrangement(pattern, MARKING, MARKS)
    examples = [even_example(4)]
    check_gradients(model, examples, arrangement)
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert any("token_adapter" in name for name in trained)
    assert all("token_adapter" in name or "lora_" in name for name in trained)
    loss = -packed(model, examples, arrangement)[0].sum()
    parts = torch.autograd.grad(loss, list(trained.values()))
    assert all(row.norm() > 0 for part in parts for row in (part if len(part) == 2 else [part]))


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama", "mistral", "bloom"])
@pytest.mark.parametrize("pattern", ["none", "prepend", "append"])
@torch.no_grad()
def test_packed_scores_equal_scoring_step_by_step(family: str, pattern: str) -> None:
    """What the engine says of the same prompts, one after another through its cache."""
    model: Any = shared_model(family)
    engine = LocalEngine(model, window=192)
    example = even_example(7, first=30, stride=5, passage=17)
    example = Example(example.window, ((), *example.passages[1:4], (), *example.passages[5:]))
    arrangement = Arrangement(pattern, MARKING)
    stepped = [
        cached_scores(engine, prompt + targets, len(prompt))
        for prompt, targets in prompts(example, arrangement)
    ]
    check_scores(packed(model, [example], arrangement), [torch.tensor(stepped)])


@contextmanager
def counted_passes(model: nn.Module) -> Iterator[list[int]]:
    """The tokens of every pass, padding included."""
    passes: list[int] = []

    def count(_: nn.Module, __: object, named: dict[str, Any]) -> None:
        passes.append(named["input_ids"].numel())

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


@pytest.mark.parametrize("family", PACKING)
@pytest.mark.parametrize("first", [10, 100])
@torch.no_grad()
def test_appended_passages_run_the_context_once(family: str, first: int) -> None:
    model = shared_model(family)
    cuts, stride, passage = 5, 4, 9
    example = even_example(cuts, first=first, stride=stride, passage=passage)
    branch = 1 + len(MARKING) + passage + stride - 1
    context = first + (cuts - 1) * stride - 1
    with counted_passes(model) as passes:
        packed(model, [example], APPENDED)
    assert passes == [context, cuts * branch]
    with counted_passes(model) as passes:  # so, too, when the branches do not fit one batch
        packed(model, [example], APPENDED, 2 * branch)
    assert passes == [context, 2 * branch, 2 * branch, branch]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_without_passages_a_window_is_one_sequence(family: str) -> None:
    """Up to its last target, whatever comes behind it: the ids may be a whole document's."""
    example = even_example(5, first=100, stride=4)
    window = example.window
    longer = replace(example, window=replace(window, ids=window.ids + window.ids * 3))
    with counted_passes(shared_model(family)) as passes:
        scores = packed(shared_model(family), [example, longer], Arrangement("none"))
    assert passes == [2 * 119]
    check_scores(scores[:1], scores[1:])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_prepended_passage_that_stays_the_same_is_read_once(family: str) -> None:
    example = even_example(5, first=50, stride=4, passage=9)
    first, second = example.passages[:2]
    example = replace(example, passages=(first, first, second, second, second))
    arrangement = Arrangement("prepend", MARKING)
    with counted_passes(shared_model(family)) as passes:
        scores = packed(shared_model(family), [example], arrangement, 1)
    assert passes == [50 + 4 + 11 + 3, 50 + 16 + 11 + 3]
    check_scores(scores, separately(shared_model(family), [example], arrangement))


@pytest.mark.parametrize(
    ("family", "pattern"),
    [("llama", "prepend"), ("mistral", "prepend"), ("mistral", "append")],
)
@torch.no_grad()
def test_separate_sequences_share_batches_within_the_limit(family: str, pattern: str) -> None:
    """Also those of several examples; short ones are not padded to the length of long ones."""
    examples = [even_example(4, first=60, passage=9), even_example(4, first=20, passage=9)]
    ragged = [
        tuple(passage * (4 * (at % 2) + 1) for at, passage in enumerate(example.passages))
        for example in examples
    ]
    examples = [replace(one, passages=own) for one, own in zip(examples, ragged, strict=True)]
    arrangement = Arrangement(pattern, MARKING)
    lengths = sorted(
        len(prompt) + len(targets) - 1
        for example in examples
        for prompt, targets in prompts(example, arrangement)
    )
    with counted_passes(shared_model(family)) as passes:
        packed(shared_model(family), examples, arrangement, 10_000)
    assert passes == [len(lengths) * lengths[-1]]
    with counted_passes(shared_model(family)) as passes:
        packed(shared_model(family), examples, arrangement, 260)
    assert max(passes) <= 260
    assert len(passes) < len(lengths)
    assert sum(passes) < sum(lengths) * 1.2


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.inference_mode()
def test_scores_are_float32_whatever_the_model_is(pattern: str) -> None:
    model = tiny_model("llama").bfloat16()
    scores = packed(model, [even_example(3, stride=5)], Arrangement(pattern, MARKING, MARKS))
    assert [(score.shape, score.dtype) for score in scores] == [((3, 5), torch.float32)]
    assert scores[0].max() < 0


def test_scoring_without_gradients_gives_none() -> None:
    model = shared_model("llama")
    for pattern in PATTERNS:
        arrangement = Arrangement(pattern, MARKING)
        scores = packed(model, [even_example(2)], arrangement)
        with torch.no_grad():
            unlearned = packed(model, [even_example(2)], arrangement)
        assert scores[0].requires_grad
        assert not unlearned[0].requires_grad
        check_scores(unlearned, scores)


DROPPING = [even_example(4, first=12, passage=20)]


def dropped(model: nn.Module, seed: int) -> list[Tensor]:
    """Scores in training mode, dropout drawn from a seed."""
    torch.manual_seed(seed)
    return packed(model, DROPPING, APPENDED)


@pytest.mark.parametrize("family", QUERY_AND_VALUE)
def test_dropout_is_drawn_from_the_seed_and_only_in_training(family: str) -> None:
    model = lora_model(family, train_marks=True, dropout=0.3)
    first, again, other = (gradient(model, dropped(model, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).norm() > 0.05 * first.norm()
    model.eval()
    try:
        assert torch.equal(dropped(model, 0)[0], dropped(model, 1)[0])
        check_gradients(model, DROPPING, APPENDED)
    finally:
        model.train()


def mean_gradient(model: nn.Module, copies: Sequence[Tensor]) -> Tensor:
    """Of the mean of equal examples whose dropout differs."""
    return gradient(model, [torch.stack(list(copies)).mean(0)])


def mean_of(gradients: Sequence[Tensor]) -> tuple[Tensor, float]:
    """The mean, and the square of the distance to the true mean that is to be expected of it."""
    stacked = torch.stack(list(gradients))
    return stacked.mean(0), float(stacked.var(0).sum()) / len(stacked)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dropout_leaves_the_mean_gradient_that_separate_sequences_have(family: str) -> None:
    """Branches share the masks of their context: another variance, but the same expectation."""
    model = lora_model(family, train_marks=True, dropout=0.3)
    torch.manual_seed(0)
    together, spread = mean_of(
        [mean_gradient(model, packed(model, DROPPING * 5, APPENDED)) for _ in range(24)]
    )
    apart, own_spread = mean_of(repeated_gradients(model, 12, 50))
    by_chance = spread + own_spread
    assert (together - apart).square().sum() < 2 * by_chance
    model.eval()
    try:
        undropped = gradient(model, packed(model, DROPPING, APPENDED))
    finally:
        model.train()
    # The negative control: leaving dropout out is not within what chance allows.
    assert (undropped - apart).square().sum() > 5 * by_chance


def repeated_gradients(model: nn.Module, groups: int, copies: int) -> list[Tensor]:
    """Of separate sequences, each repeated in a batch, so that every copy has masks of its own."""
    torch.manual_seed(0)
    found = []
    for _ in range(groups):
        rows = []
        for prompt, targets in prompts(DROPPING[0], APPENDED):
            ids = torch.tensor([prompt + targets[:-1]] * copies)
            logits = model(input_ids=ids, use_cache=False).logits[:, -len(targets) :]
            logits[:, :, list(MARKS)] = -torch.inf
            chances = logits.log_softmax(-1)[:, range(len(targets)), list(targets)]
            rows.append(chances.mean(0))
        found.append(gradient(model, [torch.stack(rows)]))
    return found


@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_drawn_strides_are_scored_as_each_alone(pattern: str) -> None:
    example = replace(even_example(8), passage_tokens=9)
    some = example.drawn(3, seed=1)
    assert len(some.window.cuts) == len(some.passages) == 3
    assert set(some.window.cuts) < set(example.window.cuts)
    scorer = TargetScorer(shared_model("llama"))
    arrangement = Arrangement(pattern, MARKING, MARKS)
    with torch.no_grad():
        (together,) = scorer.log_probs([some], arrangement)
        alone = [
            replace(some, window=replace(some.window, cuts=(cut,)), passages=(passage,))
            for cut, passage in zip(some.window.cuts, some.passages, strict=True)
        ]
        separate = torch.cat(scorer.log_probs(alone, arrangement))
    torch.testing.assert_close(together, separate, atol=TOLERANCE, rtol=0)


def test_the_seed_and_the_window_decide_which_strides_are_drawn() -> None:
    examples = [even_example(20, seed=seed) for seed in range(8)]
    chosen = [one.drawn(4, seed=0).window.cuts for one in examples]
    assert chosen == [one.drawn(4, seed=0).window.cuts for one in examples]
    assert chosen != [one.drawn(4, seed=1).window.cuts for one in examples]
    assert len(set(chosen)) > 1
    assert all(cuts == tuple(sorted(cuts, key=lambda cut: cut.boundary)) for cuts in chosen)


@pytest.mark.parametrize("strides", [0, 20, 21])
def test_all_strides_stay_where_no_fewer_are_asked_for(strides: int) -> None:
    example = even_example(20)
    assert example.drawn(strides, seed=0) is example


@pytest.mark.parametrize("pattern", ["none", "prepend"])
def test_drawn_strides_whose_prompts_continue_are_one_sequence(pattern: str) -> None:
    example = replace(even_example(8), passage_tokens=9)
    same = replace(example, passages=example.passages[:1] * len(example.passages))
    passes = 0
    for _ in TargetScorer(shared_model("llama")).steps(
        [same.drawn(3, seed=1)], Arrangement(pattern, MARKING, MARKS)
    ):
        passes += 1
    assert passes == 1
