"""The stride loop: what is retrieved, written, shown and counted."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from families import tiny_model
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import Capabilities, Completion
from flashback.errors import PromptTooLong, SettingsError
from flashback.patterns.prompt import Prompt
from flashback.retrieval.protocol import Hit
from flashback.sampling import Sampler
from flashback.settings import (
    FrameText,
    RetrievalSettings,
    SamplingSettings,
    SearchOptions,
    Settings,
    StoppingSettings,
)
from flashback.writing.generator import Generation, Generator, Stride, StrideStart, TextPiece
from tiny_readers import MadeUpRetriever, tiny_reader

READER = tiny_reader()
MARKED = tiny_reader(marks=True)


class Script:
    """An engine that writes a given text, byte by byte, whatever it is asked."""

    capabilities = Capabilities(window=1000, slot=False)

    def __init__(self, text: str, *, then: Sequence[int] = (1,)) -> None:
        self._ids = iter([*READER.encode(text), *then])
        self.prompts: list[Prompt] = []

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        self.prompts.append(prompt)

        def tokens() -> Iterator[int]:
            for _ in range(max_tokens):
                logits = torch.zeros(300)
                logits[next(self._ids)] = 1
                yield sampler.choose(logits)

        return Completion(tokens())


class OnePassage:
    """Always the same hit; remembers what it was asked."""

    def __init__(self, text: str = "PASSAGE") -> None:
        self.asked: list[tuple[list[str], SearchOptions]] = []
        self._hit = Hit("d#0", "d", "title", text, 3.5)

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        self.asked.append((list(queries), options))
        return [[self._hit] for _ in queries]


def small(pattern: str = "append", new: int = 40, **stopping: object) -> Settings:
    return Settings(
        RetrievalSettings(pattern=pattern, stride=5, passage_tokens=30, query_tokens=6),
        stopping=StoppingSettings(max_new_tokens=new, **stopping),  # type: ignore[arg-type]
    )


def write(text: str, settings: Settings, prompt: str = "Once") -> Generation:
    return Generator(READER, Script(text), OnePassage()).generate(prompt, settings)


def test_text_tokens_and_strides_agree() -> None:
    text = "a naïve 🙂 text, in two-and-a-half strides"
    result = write(text, small(new=100))
    assert result.text == text == "".join(stride.text for stride in result.strides)
    assert result.finish_reason == "eos"
    assert result.tokens == (*READER.encode(text), 1)
    assert all(len(stride.tokens) == 5 for stride in result.strides[:-1])


def test_no_piece_of_streamed_text_breaks_a_character_at_a_stride() -> None:
    text = "🙂🙂🙂🙂🙂é漢"  # 4-byte characters over strides of 5
    writing = Generator(READER, Script(text), OnePassage()).stream("x", small(new=100))
    pieces = [event.text for event in writing if isinstance(event, TextPiece)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_events_come_in_order() -> None:
    writing = Generator(READER, Script("0123456789"), OnePassage()).stream("x", small(new=10))
    kinds = [type(event) for event in writing]
    stride = [StrideStart, *[TextPiece] * 5, Stride]
    assert kinds == stride * 2


def test_a_result_before_the_end_is_refused() -> None:
    writing = Generator(READER, Script("abc"), None).stream("x", small("none"))
    for _ in writing:
        with pytest.raises(RuntimeError, match="not finished"):
            _ = writing.result
    assert writing.result.text == "abc"


def test_stopping_early_closes_the_completion() -> None:
    engine = LocalEngine(READER.model, 192)
    writing = Generator(READER, engine, None).stream("x", small("none", ignore_eos=True))
    events = iter(writing)
    for _ in range(3):
        next(events)
    writing.close()
    assert not engine.leases.taken
    with pytest.raises(RuntimeError, match="not finished"):
        _ = writing.result


def test_time_spent_by_the_caller_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    writing = Generator(READER, Script("0123456789"), OnePassage()).stream("Once", small(new=10))
    for _ in writing:
        now += 100
    assert writing.result.seconds == 0


@pytest.mark.parametrize(
    ("stop", "shown"), [("45", "0123"), ("9a", "012345678"), ("cdefghijkl", "0123456789ab")]
)
def test_stop_texts_may_span_strides_and_are_not_shown(stop: str, shown: str) -> None:
    result = write("0123456789abcdefghijklmnop", small(new=30, stop=(stop, "never")))
    assert result.text == shown
    assert result.finish_reason == "stop"


def test_text_held_back_for_a_stop_text_comes_out_at_the_end() -> None:
    assert write("0123", small(new=30, stop=("34",))).text == "0123"
    result = write("01234567", small(new=4, stop=("34",)))
    assert (result.text, result.finish_reason) == ("0123", "length")


def test_a_stop_text_completed_by_the_very_last_token_stops() -> None:
    result = write("0123456789", small(new=5, stop=("34",)))
    assert (result.text, result.finish_reason) == ("012", "stop")


def test_eos_ends_the_text_unless_ignored() -> None:
    assert write("abc", small(new=30)).tokens[-1] == 1
    script = Script("abc", then=[1, *READER.encode("def")])
    result = Generator(READER, script, OnePassage()).generate("x", small(new=7, ignore_eos=True))
    assert (result.text, result.finish_reason) == ("abcdef", "length")


@pytest.mark.parametrize("new", [1, 4, 5, 6, 10, 11])
def test_exactly_as_many_tokens_as_asked(new: int) -> None:
    result = write("0123456789abcdef", small(new=new))
    assert len(result.tokens) == new
    assert result.finish_reason == "length"


def test_queries_are_the_last_tokens_of_the_context_as_text() -> None:
    retriever = OnePassage()
    settings = small(new=10)
    Generator(READER, Script("0123456789"), retriever).generate("Hello, world", settings)
    assert [asked[0] for asked in retriever.asked] == [[" world"], ["d01234"]]


def test_what_is_forbidden_reaches_the_retriever() -> None:
    retriever = OnePassage()
    retrieval = RetrievalSettings(
        "append",
        stride=5,
        passages=3,
        min_score=1.5,
        forbid_titles=("t",),
        forbid_documents=("d",),
    )
    Generator(READER, Script("0123456789"), retriever).generate("x", Settings(retrieval))
    assert retriever.asked[0][1] == SearchOptions(3, 1.5, ("t",), ("d",))


def test_pattern_none_asks_nobody() -> None:
    retriever = OnePassage()
    result = Generator(READER, Script("0123456789"), retriever).generate("x", small("none"))
    assert not retriever.asked
    assert not any(stride.passages for stride in result.strides)


@pytest.mark.parametrize("pattern", ["prepend", "append"])
def test_the_engine_gets_context_and_framed_passage_as_ids(pattern: str) -> None:
    script = Script("0123456789")
    settings = Settings(
        RetrievalSettings(
            pattern=pattern, stride=5, passage_tokens=4, frame=FrameText("<", ">", 0)
        ),
        stopping=StoppingSettings(max_new_tokens=10),
    )
    result = Generator(READER, script, OnePassage()).generate("Once", settings)
    shown = [READER.show(prompt.ids) for prompt in script.prompts]
    if pattern == "append":
        assert shown == ["<s>Once<PASS>", "<s>Once01234<PASS>"]
    else:
        assert shown == ["<s><PASS>Once", "<s><PASS>Once01234"]
    assert [stride.arranged for stride in result.strides] == [p.ids for p in script.prompts]


def test_several_passages_stand_best_first_in_one_frame() -> None:
    script = Script("0123456789")
    settings = Settings(
        RetrievalSettings(
            "append", stride=5, passages=2, passage_tokens=9, frame=FrameText("<", ">", 0)
        )
    )
    hits = [Hit("a", "a", "", "best", 2.0), Hit("b", "b", "", "second", 1.0)]

    class Two:
        def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
            return [hits[: options.k] for _ in queries]

    Generator(READER, script, Two()).generate("x", settings)
    assert READER.show(script.prompts[0].ids) == "<s>x<bestsecond>"


def test_an_empty_retrieval_leaves_the_context_alone() -> None:
    script = Script("0123456789")
    Generator(READER, script, MadeUpRetriever(empty=1.0)).generate("x", small(new=5))
    assert READER.show(script.prompts[0].ids) == "<s>x"


def test_trained_marks_frame_passages_and_are_never_written() -> None:
    """The marks' logits are by far the highest; they must not be chosen all the same."""
    model = tiny_model("llama")
    assert MARKED.marks is not None
    reader = tiny_reader(model=model, marks=True)

    def prefer_marks(module: object, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        logits[..., list(MARKED.marks or ())] += 1e4
        return logits

    hook = model.lm_head.register_forward_hook(prefer_marks)
    engine = LocalEngine(model, 192)
    result = Generator(reader, engine, OnePassage()).generate("x", small(ignore_eos=True))
    hook.remove()
    left, right = MARKED.marks
    assert not {left, right} & set(result.tokens)
    for stride in result.strides:
        assert stride.arranged.count(left) == stride.arranged.count(right) == 1
        assert stride.arranged[-1] == right
    assert "MARK" not in result.text


def test_samples_do_not_depend_on_how_the_text_is_cut_into_strides() -> None:
    engine = LocalEngine(READER.model, 192)

    def sample(stride: int) -> tuple[int, ...]:
        retrieval = RetrievalSettings(pattern="none", stride=stride, passage_tokens=16)
        drawing = SamplingSettings(temperature=1.0, seed=9)
        stopping = StoppingSettings(max_new_tokens=30, ignore_eos=True)
        return (
            Generator(READER, engine, None)
            .generate("some text", Settings(retrieval, drawing, stopping))
            .tokens
        )

    assert sample(3) == sample(7) == sample(30)


def test_penalties_see_the_text_but_never_the_passage() -> None:
    """The sampler's history, which is what penalties see, at every boundary."""
    seen: list[list[int]] = []

    class Watching(Script):
        def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
            seen.append(list(sampler.history))
            return super().complete(prompt, max_tokens, sampler)

    Generator(READER, Watching("0123456789"), OnePassage()).generate("Once", small(new=10))
    assert [READER.show(ids) for ids in seen] == ["<s>Once", "<s>Once01234"]


def test_token_ids_are_as_good_as_text() -> None:
    ids = READER.encode_prompt("Once")
    by_ids = Generator(READER, Script("abc"), OnePassage()).generate(ids, small())
    assert by_ids.prompt_tokens == tuple(ids)
    assert by_ids.tokens == write("abc", small()).tokens


def test_a_long_prompt_is_refused_or_truncated() -> None:
    engine = LocalEngine(READER.model, 100)
    writer = Generator(READER, engine, OnePassage())
    with pytest.raises(PromptTooLong, match="truncate=True"):
        writer.generate("x" * 100, small(new=5))
    cut = Settings(small(new=5).retrieval, stopping=StoppingSettings(5), truncate=True)
    result = writer.generate("y" + "x" * 100, cut)
    assert result.prompt_tokens[0] == 0
    assert len(result.prompt_tokens) == 100 - 30 - len(READER.frame(None, "append")) - 5


def test_a_jump_is_reported_and_keeps_bos_and_the_second_half() -> None:
    engine = LocalEngine(READER.model, 100)
    settings = small(new=80, ignore_eos=True)
    result = Generator(READER, engine, OnePassage()).generate("Once upon a time", settings)
    budget = 100 - 30 - len(READER.frame(None, "append")) - 5
    assert result.jumps
    text = (*result.prompt_tokens, *result.tokens)
    for jump in result.jumps:
        number = (jump - len(result.prompt_tokens)) // 5
        context = (0, *text[jump - budget // 2 : jump])
        assert result.strides[number].arranged[: len(context)] == context


@pytest.mark.parametrize(
    ("prompt", "pattern", "message"),
    [
        ("x", "append", "give an index"),
        ([0, 5, 300], "none", "prompt token 300"),
        ([0, -1], "none", "prompt token -1"),
        ([], "none", "prompt is empty"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(
    prompt: str | list[int], pattern: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        Generator(READER, Script(""), None).stream(prompt, small(pattern))


def wrong(**values: Any) -> Any:
    """Values of a type that a type checker would refuse."""
    return values


def test_whole_numbers_are_good_real_ones() -> None:
    settings = SamplingSettings(temperature=2, repetition_penalty=2)
    assert Sampler(settings, [1]).choose(torch.zeros(5)) in range(5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RetrievalSettings(stride=0), r"stride=0: expected a whole number from 1"),
        (lambda: RetrievalSettings(**wrong(stride=2.5)), r"stride=2.5"),
        (lambda: RetrievalSettings(stride=True), r"stride=True"),
        (lambda: RetrievalSettings(passages=-1), r"passages=-1"),
        (
            lambda: RetrievalSettings(**wrong(pattern="sideways")),
            r"pattern='sideways': expected one of auto, none",
        ),
        (lambda: RetrievalSettings(min_score=float("nan")), r"min_score=nan"),
        (lambda: SamplingSettings(temperature=-0.1), r"temperature=-0.1"),
        (lambda: SamplingSettings(top_p=2.0), r"top_p=2.0: expected a number from 1e-06 to 1"),
        (lambda: SamplingSettings(seed=-1), r"seed=-1"),
        (lambda: SamplingSettings(temperature=-0.1), r"temperature=-0.1: expected a number"),
        (
            lambda: SamplingSettings(temperature=1e-9, top_k=5),
            r"top_k=5: has no effect on greedy",
        ),
        (lambda: RetrievalSettings(min_relative_score=1.5), r"min_relative_score=1.5"),
        (lambda: SamplingSettings(0.005, top_k=5), r"give a temperature of 0\.01 or more, such"),
        (lambda: SamplingSettings(top_p=0.9), r"top_p=0.9: has no effect on greedy writing"),
        (lambda: RetrievalSettings(**wrong(forbid_titles="secret")), r"forbid_titles='secret'"),
        (lambda: StoppingSettings(max_new_tokens=0), r"max_new_tokens=0"),
        (lambda: StoppingSettings(stop=("",)), r"stop=''"),
        (lambda: StoppingSettings(**wrong(stop="abc")), r"stop='abc': expected a tuple"),
    ],
)
def test_settings_out_of_range_name_their_argument(build: "type", message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build()


@pytest.mark.parametrize("at", range(1, 9))
def test_a_text_ends_soon_wherever_that_is_said(at: int) -> None:
    """With the next token, or with the stride's last one."""
    writing = Generator(READER, Script("abcdefghijklmnop"), OnePassage()).stream("Once", small())
    for number, event in enumerate(
        (event for event in writing if isinstance(event, TextPiece)), start=1
    ):
        assert event.text
        if number == at:
            writing.end_soon()
    assert writing.finish_reason == writing.result.finish_reason == "length"
    assert len(writing.result.tokens) == at + (at % 5 != 0)


def test_a_token_without_text_is_an_event_too() -> None:
    writing = Generator(READER, Script("🙂"), OnePassage()).stream("Once", small(new=4))
    pieces = [event.text for event in writing if isinstance(event, TextPiece)]
    assert pieces == ["", "", "", "🙂"]


def test_what_is_held_back_can_be_had_when_writing_is_stopped() -> None:
    settings = small(stop=("abcdefgX",))
    writing = Generator(READER, Script("abcdefghij"), OnePassage()).stream("Once", settings)
    for event in writing:
        if isinstance(event, Stride):
            break
    assert writing.finish_reason is None
    assert writing.held_back() == "abcde"
    writing.close()


def test_a_query_may_be_made_of_what_was_written() -> None:
    retriever = OnePassage()
    settings = small(new=15)
    asking = dataclasses.replace(settings.retrieval, lookahead=2)
    writing = Generator(READER, Script("abcdefghijklmno"), retriever).stream(
        "Once", dataclasses.replace(settings, retrieval=asking), query=lambda text: f"<{text}>"
    )
    writing.finish()
    assert [queries for queries, _ in retriever.asked] == [["<>"], ["<ab>"], ["<abcdefg>"]]
