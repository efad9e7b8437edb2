"""Where the tokens of a prompt stand, and when the context jumps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashback.errors import PromptTooLong, SettingsError
from flashback.patterns.context import Context, context_budget
from flashback.patterns.frame import Frame
from flashback.patterns.pattern import Boundary
from flashback.patterns.prompt import Ids, Prompt
from flashback.patterns.registry import PATTERNS

IDS = st.lists(st.integers(1, 99), max_size=8).map(tuple)
FRAME = Frame((100,), (101, 102))


def arrange(
    pattern: str, context: Ids, passage: Ids, frame: Frame, bos: int, before: Prompt | None = None
) -> Prompt:
    return PATTERNS[pattern].arrange(Boundary(context, passage, frame, bos, before=before))


def test_each_pattern_puts_the_passage_in_its_place() -> None:
    context, passage = (0, 1, 2), (7, 8)
    assert arrange("none", context, passage, FRAME, 1) == Prompt.plain((0, 1, 2))
    assert arrange("append", context, passage, FRAME, 1) == Prompt.plain(
        (0, 1, 2, 100, 7, 8, 101, 102)
    )
    assert arrange("prepend", context, passage, FRAME, 1) == Prompt.plain(
        (0, 100, 7, 8, 101, 102, 1, 2)
    )


def test_an_echo_repeats_the_end_of_the_text_behind_an_appended_passage_alone() -> None:
    frame = Frame((100,), (101,), echo=2)
    assert len(frame) == 4
    appended = arrange("append", (0, 1, 2, 3), (7,), frame, 1)
    assert appended == Prompt.plain((0, 1, 2, 3, 100, 7, 101, 2, 3))
    prepended = arrange("prepend", (0, 1, 2, 3), (7,), frame, 1)
    assert prepended == Prompt.plain((0, 100, 7, 101, 1, 2, 3))
    # BOS is no text; a text shorter than the echo is repeated whole.
    assert arrange("append", (0, 1), (7,), frame, 1) == Prompt.plain((0, 1, 100, 7, 101, 1))
    assert arrange("append", (0, 1, 2), (), frame, 1) == Prompt.plain((0, 1, 2))


@given(
    pattern=st.sampled_from(["none", "prepend", "append"]),
    context=IDS,
)
def test_an_empty_retrieval_arranges_the_context_alone(
    pattern: str, context: tuple[int, ...]
) -> None:
    assert arrange(pattern, context, (), FRAME, 1) == Prompt.plain(context)


@given(context=IDS, passage=IDS.filter(bool), bos=st.integers(0, 1))
def test_prepending_and_appending_hold_the_same_tokens(
    context: tuple[int, ...], passage: tuple[int, ...], bos: int
) -> None:
    prepended = arrange("prepend", context, passage, FRAME, bos).ids
    appended = arrange("append", context, passage, FRAME, bos).ids
    assert sorted(prepended) == sorted(appended)
    if len(context) >= bos:
        assert prepended[:bos] == appended[:bos] == context[:bos]


def test_the_budget_is_what_passages_frame_and_stride_leave() -> None:
    assert context_budget(2048, passages=2, passage_tokens=128, frame=3, stride=16) == 1773


@pytest.mark.parametrize("window", [1, 100, 147, 178])
def test_a_window_too_small_is_refused_with_what_to_lower(window: int) -> None:
    with pytest.raises(SettingsError, match="lower passage_tokens, passages or stride"):
        context_budget(window, passages=1, passage_tokens=128, frame=2, stride=16)


def test_a_prompt_over_the_budget_names_truncate() -> None:
    with pytest.raises(PromptTooLong, match=r"11 tokens, but only 10 fit.*truncate=True"):
        Context.of_prompt(range(11), (0,), 10, truncate=False)
    assert Context.of_prompt(range(10), (0,), 10, truncate=False).visible == tuple(range(10))


def test_truncation_keeps_bos_and_the_end_of_the_prompt() -> None:
    context = Context.of_prompt(range(20), (0,), 10, truncate=True)
    assert context.visible == (0, *range(11, 20))


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(SettingsError, match="prompt is empty"):
        Context.of_prompt([], (), 10, truncate=False)


def test_a_prompt_that_does_not_begin_with_bos_never_gets_one() -> None:
    context = Context.of_prompt([5] * 10, (0,), 10, truncate=False)
    context.ids.append(6)
    context.jump_if_full()
    assert context.visible == (5, 5, 5, 5, 6)


def test_truncation_gives_no_bos_to_a_prompt_that_had_none() -> None:
    assert Context.of_prompt([5] * 20, (0,), 10, truncate=True).visible == (5,) * 10


@given(
    budget=st.integers(20, 60),
    length=st.integers(1, 20),
    strides=st.lists(st.integers(1, 8), max_size=40),
    bos=st.sampled_from([(), (0,)]),
)
def test_the_visible_context_is_bos_and_the_latest_text_within_the_budget(
    budget: int, length: int, strides: list[int], bos: tuple[int, ...]
) -> None:
    context = Context.of_prompt([*bos, *range(1, length + 1)][:budget], bos, budget, truncate=False)
    for stride in strides:
        before = context.visible
        jumped = context.jump_if_full()
        assert jumped == (len(before) > budget)
        assert len(context.visible) <= budget
        if jumped:
            assert context.visible == bos + tuple(context.ids[-(budget // 2) :])
            assert context.jumps[-1] == len(context.ids)
        else:
            assert context.visible == before
        assert context.visible[: len(bos)] == bos
        context.ids.extend(range(1000, 1000 + stride))
    assert len(context.jumps) == len(set(context.jumps))


@given(
    bos=st.integers(0, 1),
    block=st.integers(2, 7),
    stride=st.integers(1, 9),
    again=st.integers(1, 12),
    history=st.integers(0, 9),
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6),
)
def test_a_slot_made_of_blocks_is_full_and_begins_and_ends_with_blocks(
    bos: int, block: int, stride: int, again: int, history: int, lengths: list[int]
) -> None:
    frame = Frame((100,), (101,))
    pattern, before = PATTERNS["slot"], None
    for number, length in enumerate(lengths):
        context = tuple(range(10 + number * stride))
        passage = tuple(range(50, 50 + length))
        reserved = pattern.reserved(1, 12, frame)
        at = Boundary(context, passage, frame, bos, reserved, history, again, before, block=block)
        prompt = pattern.arrange(at)
        layout = prompt.layout
        assert layout.reserved == 0 or layout.passage_end % block == 0
        assert prompt.ids == context
        for one in prompt.segments:
            if one.start >= layout.history:
                assert len(one.passage) == layout.reserved
                assert not layout.reserved or layout.position(one.start) % block == 0
        framed = at.framed
        assert prompt.passage[len(prompt.passage) - len(framed) :] == framed
        assert bool(framed) == bool(layout.reserved)
        for token, later in zip(prompt.passage, prompt.passage[len(framed) :], strict=False):
            assert token == later
        if before is not None and prompt.passage != before.passage and layout == before.layout:
            assert prompt.segments[-1].start <= max(len(context) - again, layout.history)
        before = prompt
