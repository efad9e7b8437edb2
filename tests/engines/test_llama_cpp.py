"""llama.cpp: what it writes equals one plain pass of transformers over the same weights."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from command_line import index_notes, refused, run
from flashback.engines.llama_cpp import LlamaEngine
from flashback.engines.llama_library import LlamaContext, LlamaModel, Shape
from flashback.engines.llama_memory import LlamaMemory, Numbers
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import CachingEngine, Completion
from flashback.errors import ReaderError, SettingsError, UnsupportedReader
from flashback.loading import load
from flashback.patterns.prompt import Ids, Layout, Prompt, View
from flashback.questions.given_answers import given_nats
from flashback.readers.reader import Reader
from flashback.sampling import Sampler
from flashback.settings import (
    FrameText,
    RetrievalSettings,
    SamplingSettings,
    Settings,
    StoppingSettings,
)
from flashback.writing.generator import Generation, Generator
from gguf_files import gemma_tokenizer, merging_tokenizer, tiny_gemma, tiny_llama, write_gguf
from recompute import TOLERANCE, block_mask_logits, logits_with_views
from recorded import generate_and_record
from servers import serving
from tiny_readers import MadeUpRetriever, tiny_reader

pytest.importorskip("llama_cpp", reason="llama-cpp-python, of the extra llama, is not installed")

WINDOW = 180
GELU_TOLERANCE = 1e-3
"""llama.cpp reads GELU from a table of float16 numbers, so where a sum's last bit differs, an entry
beside the right one may be read: seen to move a logit by 2e-4. A wrong token moves it by 0.1."""
FEW = Numbers(texts=2, passages=2)


class Recording(LlamaEngine):
    """An engine that keeps the prompts it was given."""

    prompts: tuple[Prompt, ...] = ()

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        self.prompts += (prompt,)
        return super().complete(prompt, max_tokens, sampler)


@cache
def reader() -> Reader:
    """A tiny Llama whose tokens are bytes, and whose logits differ clearly."""
    shape = {"initializer_range": 0.15, "max_position_embeddings": 512}
    return tiny_reader(model=tiny_llama(**shape), window=WINDOW)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a GGUF file; its tokenizer is another."""
    return write_gguf(
        tmp_path_factory.mktemp("gguf") / "tiny.gguf", reader().model, merging_tokenizer()
    )


@pytest.fixture(scope="module")
def model(file: Path) -> LlamaModel:
    return LlamaModel(str(file), "tiny", gpu=False)


@pytest.fixture(scope="module")
def engine(model: LlamaModel) -> Recording:
    """One engine for all examples: what earlier ones left in its cells must not matter."""
    return Recording(model, WINDOW, exact=True, threads=1, numbers=FEW)


def given_settings(pattern: str, **more: Any) -> Settings:
    values: dict[str, Any] = {"stride": 5, "passage_tokens": 24, "query_tokens": 8}
    values |= {"frame": FrameText("[", "]"), **more}
    retrieval = RetrievalSettings(pattern, **values)
    return Settings(retrieval, stopping=StoppingSettings(60, ignore_eos=True), truncate=True)


def write(
    engine: Recording, retriever: MadeUpRetriever, ids: Sequence[int], made_up: Settings
) -> tuple[Generation, float]:
    """A generation, and the largest difference of its logits from those of one plain pass."""
    engine.prompts = tuple[Prompt, ...]()
    found, seen = generate_and_record(Generator(reader(), engine, retriever), ids, made_up)
    rows, error = iter(seen), 0.0
    with torch.inference_mode():
        for prompt, stride in zip(engine.prompts, found.strides, strict=True):
            for row in block_mask_logits(reader().model, prompt, stride.tokens):
                error = max(error, float((row - next(rows)).abs().max()))
    assert next(rows, None) is None
    return found, error


@pytest.mark.parametrize("pattern", ["none", "append", "prepend", "slot"])
def test_it_writes_what_our_engine_writes(engine: Recording, pattern: str) -> None:
    """The same tokens and the same counts: passages are exchanged, return, and are missing."""
    own = LocalEngine(reader().model, WINDOW)
    engine.forget()
    met: set[str] = set()
    for seed in range(3):
        made_up = given_settings(pattern)
        local = Generator(reader(), own, MadeUpRetriever(seed)).generate((0, 7, 8), made_up)
        found, error = write(engine, MadeUpRetriever(seed), (0, 7, 8), made_up)
        assert error <= TOLERANCE
        assert found.tokens == local.tokens
        for one, two in zip(found.strides, local.strides, strict=True):
            assert one.usage.decoded == two.usage.decoded
            if seed == 0:  # later, other things are kept
                assert replace_seconds(one.usage) == replace_seconds(two.usage)
        passages = [stride.passages for stride in found.strides]
        met.update({"empty"} if () in passages else ())
        met.update({"same"} if any(a and a == b for a, b in pairwise(passages)) else ())
    assert pattern == "none" or met == {"empty", "same"}


def replace_seconds(usage: Any) -> Any:
    return replace(usage, prefill_seconds=0.0, decode_seconds=0.0)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingSettings(temperature=0.9, seed=3),
        SamplingSettings(temperature=1.2, top_k=9, top_p=0.8, repetition_penalty=1.3, seed=1),
    ],
)
def test_samples_are_our_engines(engine: Recording, sampling: SamplingSettings) -> None:
    made_up = replace(given_settings("slot"), sampling=sampling)
    own = LocalEngine(reader().model, WINDOW)
    local = Generator(reader(), own, MadeUpRetriever(1)).generate((0, 7, 8), made_up)
    found, _ = write(engine, MadeUpRetriever(1), (0, 7, 8), made_up)
    assert found.tokens == local.tokens


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """Histories, sinks, exchanged and missing passages, with gaps in the positions before them."""
    ids = (0, *draw(st.lists(st.integers(2, 4), min_size=1, max_size=60)))
    history = draw(st.integers(0, len(ids) - 1))
    reserved = draw(st.sampled_from([0, 3, 9]))
    layout = Layout(history, reserved, ids[: draw(st.integers(0, min(history, 3)))])
    if not reserved:
        return Prompt.plain(ids)
    passage = st.lists(st.integers(2, 5), max_size=reserved).map(tuple)
    starts = draw(st.sets(st.integers(history, len(ids) - 1), max_size=3))
    views = [View(start, draw(passage)) for start in sorted(starts)]
    return replace(Prompt.with_views(ids, views, layout), salt=draw(st.sampled_from(["", "x"])))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(prompt=prompts())
def test_any_prompt_is_completed_exactly(engine: Recording, prompt: Prompt) -> None:
    with torch.inference_mode():
        expected = logits_with_views(reader().model, prompt)[-1]
    assert float((engine.logits(prompt) - expected).abs().max()) <= TOLERANCE


def test_given_answers_are_as_probable_as_in_a_plain_pass(engine: Recording) -> None:
    passage, answer = (4, 5, 3), (2, 9, 4, 3)
    slot = Prompt.with_views((0, 7, 8, 6), [View(1, passage)], Layout(1, 4, (0,)))
    given = (Prompt.plain((0, 7, 8, 6)), slot)
    with torch.inference_mode():
        for prompt in given:
            scores = block_mask_logits(reader().model, prompt, answer).log_softmax(-1)
            expected = -float(scores.gather(1, torch.tensor(answer)[:, None]).sum())
            (found,) = given_nats([prompt], [answer], (), engine)
            assert found == pytest.approx(expected, abs=len(answer) * TOLERANCE)


def test_a_stale_passage_would_be_noticed(
    engine: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the comparisons."""
    show = LlamaMemory.show
    monkeypatch.setattr(
        LlamaMemory,
        "show",
        lambda memory, text, passage: bool(text.passage) or show(memory, text, passage),
    )
    engine.forget()
    _, error = write(engine, MadeUpRetriever(0, empty=0, same=0), (0, 9, 8), given_settings("slot"))
    engine.forget()
    assert error > 100 * TOLERANCE


def completed(engine: LlamaEngine, prompt: Prompt, count: int = 3) -> tuple[list[int], Any]:
    completion = engine.complete(prompt, count, Sampler(SamplingSettings(), []))
    return list(completion), completion.usage


def test_passages_come_back_and_the_oldest_go(engine: Recording) -> None:
    engine.forget()
    ids = tuple(range(20))
    layout = Layout(1, 4, (0,))

    def prefilled(passage: Ids) -> int:
        prompt = Prompt.with_views(ids, [View(1, (7,)), View(18, passage)], layout)
        return int(completed(engine, prompt)[1].prefilled)

    assert prefilled((5, 6)) == 20 + 2 + 3  # the sink twice, and both passages
    assert prefilled((5, 6)) == 1
    assert prefilled((5, 6, 7)) == 2 + 4  # the first in view, (7,), is gone
    assert prefilled((5, 6)) == 2  # two are kept
    assert prefilled((9,)) == 2 + 2
    assert prefilled((5, 6)) == 2
    assert prefilled((5, 6, 7)) == 2 + 4
    assert len(engine.memory.passages) == 2


def test_texts_take_turns_in_too_few_sequences(engine: Recording) -> None:
    """A text whose cells were taken away meanwhile computes its own again."""
    layout = Layout(1, 6, (0,))
    texts = [
        Prompt.with_views((0, *range(n, n + 9)), [View(1, (n, 8, 9))], layout) for n in (20, 40, 60)
    ]
    alone = []
    for prompt in texts:
        engine.forget()
        alone.append(completed(engine, prompt, 8)[0])
    running = [engine.complete(one, 8, Sampler(SamplingSettings(), [])) for one in texts]
    turns = list(zip(*running, strict=True))
    assert [list(tokens) for tokens in zip(*turns, strict=True)] == alone
    assert len(engine.memory.texts) == FEW.texts


def test_texts_share_a_beginning(engine: Recording) -> None:
    """And each has it still when the other goes on, or is gone."""
    engine.forget()
    beginning = (0, *range(2, 32))
    first, second = (Prompt.plain((*beginning, n, n)) for n in (50, 90))
    writers = [Sampler(SamplingSettings(), []) for _ in range(2)]
    for prompt, writer in zip((first, second), writers, strict=True):
        list(engine.complete(prompt, 2, writer))
    for prompt, writer in zip((first, second), writers, strict=True):
        completion = engine.complete(prompt, 2, writer)
        list(completion)
        assert completion.usage.prefilled == 1
    assert engine.cache_use.sequences == 2
    assert engine.cache_use.sequence_bytes > 0
    engine.forget()
    assert engine.cache_use.sequences == 0


def test_one_text_after_another_leaves_one(model: LlamaModel) -> None:
    """Others would cost time at every token; but several under way are all held."""
    engine = LlamaEngine(model, WINDOW, exact=True, threads=1, self_check=False)
    first, second = (Prompt.plain(range(n, n + 20)) for n in (2, 90))
    for prompt in (first, second, first):
        completed(engine, prompt)
        assert [one.ids[:20] for one in engine.memory.texts] == [[*prompt.ids]]
    running = [engine.complete(one, 5, Sampler(SamplingSettings(), [])) for one in (first, second)]
    for _ in zip(*running, strict=True):
        assert len(engine.memory.texts) == 2
    assert [one.usage.prefilled for one in running] == [1, 20]


def test_a_completion_that_is_left_keeps_its_cells_in_order(engine: Recording) -> None:
    engine.forget()
    prompt = Prompt.plain(range(30))
    with engine.complete(prompt, 9, Sampler(SamplingSettings(), [])) as completion:
        next(completion.tokens)
        next(completion.tokens)
    tokens, usage = completed(engine, prompt, 4)
    assert (usage.reused, usage.cached, usage.prefilled, usage.decoded) == (29, 29, 1, 3)
    engine.forget()
    assert completed(engine, prompt, 4)[0] == tokens


def test_a_failure_of_the_sampler_leaves_a_usable_engine(engine: Recording) -> None:
    class Failing(Sampler):
        def choose(self, logits: Tensor) -> int:
            raise RuntimeError("no token")

    prompt = Prompt.plain(range(25))
    expected, _ = completed(engine, prompt)
    with pytest.raises(RuntimeError, match="no token"):
        list(engine.complete(prompt, 3, Failing(SamplingSettings(), [])))
    assert completed(engine, prompt)[0] == expected


def test_a_fresh_engine_shares_the_weights(engine: Recording) -> None:
    prompt = Prompt.plain(range(30))
    expected, _ = completed(engine, prompt)
    assert isinstance(engine, CachingEngine)
    fresh = engine.fresh(2)
    tokens, usage = completed(fresh, prompt)
    assert (tokens, usage.reused) == (expected, 0)


def test_long_prompts_take_several_passes(model: LlamaModel) -> None:
    memory = LlamaMemory(LlamaContext(model, Shape(512, FEW.sequences, True, 1)), FEW)
    memory.context._batch.size = 16
    ids = [2 + n % 200 for n in range(100)]
    sequence, _ = memory.take(Prompt.plain(ids), None)
    found = memory.extend(sequence, ids)
    with torch.inference_mode():
        expected = logits_with_views(reader().model, Prompt.plain(ids))[-1]
    assert float((found - expected).abs().max()) <= TOLERANCE


def test_too_few_cells_are_one_line(model: LlamaModel) -> None:
    """Everything else makes room first."""
    memory = LlamaMemory(LlamaContext(model, Shape(256, FEW.sequences, True, 1)), FEW)
    first, _ = memory.take(Prompt.plain([1, 2]), None)
    memory.extend(first, range(100))
    layout = Layout(1, 120, (0,))
    second, _ = memory.take(Prompt.with_views(tuple(range(9)), [], layout), None)
    memory.extend(second, [0])
    memory.show(second, second.placed(tuple(range(2, 102))))
    memory.extend(second, range(100))
    assert first.lost
    with pytest.raises(SettingsError, match="256 cells of keys and values are too few"):
        memory.extend(second, range(60))


def test_requests_that_cannot_be_completed(engine: Recording) -> None:
    def refusal(prompt: Prompt, count: int = 1) -> str:
        with pytest.raises(SettingsError) as raised:
            engine.complete(prompt, count, Sampler(SamplingSettings(), []))
        return str(raised.value)

    assert "0 tokens asked for" in refusal(Prompt.plain([1]), 0)
    assert "prompt is empty" in refusal(Prompt.plain([]))
    assert "180 prompt and 1 new tokens exceed the window of 180" in refusal(
        Prompt.plain([1] * WINDOW)
    )
    slot = Prompt.with_views((1,) * 100, [], Layout(0, 80))
    assert "80 slot, 100 prompt and 1 new tokens exceed" in refusal(slot)


def test_sliding_windows_have_no_slot(tmp_path: Path) -> None:
    """But a cache that is exact after any cut."""
    path = write_gguf(tmp_path / "gemma.gguf", tiny_gemma(), gemma_tokenizer())
    model = LlamaModel(str(path), "gemma", gpu=False)
    engine = LlamaEngine(model, 150, exact=True, threads=1, numbers=FEW)
    assert not engine.capabilities.slot
    with pytest.raises(SettingsError, match="model gemma can have no slot with llama"):
        engine.complete(
            Prompt.with_views((1, 2, 3), [], Layout(1, 4)), 1, Sampler(SamplingSettings(), [])
        )
    prompts = [
        Prompt.plain([5 + n % 50 + length // 100 for n in range(length)])
        for length in (120, 60, 100, 20, 140, 139)
    ]
    cached = [engine.logits(prompt) for prompt in prompts]
    for prompt, found in zip(prompts, cached, strict=True):
        engine.forget()
        expected = engine.logits(prompt)
        assert found.argmax() == expected.argmax()
        assert float((found - expected).abs().max()) <= GELU_TOLERANCE


def test_a_cache_that_is_not_exact_is_refused(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaContext, "untag", lambda *_: None)
    with pytest.raises((UnsupportedReader, ReaderError)):
        LlamaEngine(model, WINDOW, exact=True, threads=1, numbers=FEW)


def test_without_a_known_state_there_is_no_slot(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaContext, "span", lambda *_: (0, 0))
    engine = LlamaEngine(model, WINDOW, exact=True, threads=1, numbers=FEW)
    assert not engine.capabilities.slot


# Files and commands


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose tokenizer is its own, and wide enough for commands."""
    shape = {"initializer_range": 0.15, "max_position_embeddings": 512}
    path = tmp_path_factory.mktemp("words") / "words.gguf"
    plain = {"tokenizer.chat_template": None}
    return write_gguf(path, tiny_llama(**shape), merging_tokenizer(), words=plain)


SMALL = ("--stride", "6", "--passage-tokens", "128", "--max-new-tokens", "24", "--json")


@pytest.mark.parametrize("pattern", ["none", "slot"])
def test_commands_write_what_they_write_with_our_engine(
    words: Path, tmp_path: Path, pattern: str
) -> None:
    index = index_notes(tmp_path)
    common = ("--model", words, "--index", index, "--pattern", pattern, *SMALL, "the moon")
    ours = run("generate", "--dtype", "float32", *common).record
    found = run("generate", "--engine", "llama.cpp", *common).record
    assert found["text"] == ours["text"]
    shown = [[stride["arranged"] for stride in one["strides"]] for one in (found, ours)]
    assert shown[0] == shown[1]


def test_a_server_keeps_conversations(words: Path) -> None:
    writer = load(str(words), retriever=MadeUpRetriever(0), engine="llama.cpp", memory_bytes=1)
    assert "llama.cpp, keys and values in float32" in writer.reader.runs_on
    assert writer.reader.eos == {1}
    with serving(writer.reader, writer.retriever, engine=writer.engine) as served:
        fields = {"max_tokens": 8, "flashback": {"pattern": "none"}}
        first = served.complete("the moon and the sun", **fields)
        again = served.complete("the moon and the sun", **fields)
        assert first["choices"][0]["text"] == again["choices"][0]["text"]
        details = again["usage"]["prompt_tokens_details"]
        assert details["cached_tokens"] == again["usage"]["prompt_tokens"] - 1


def problems(words: Path, tmp_path: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(words.read_bytes()[:-4000])
    yield ("--model", str(cut)), "llama.cpp cannot read it"
    yield ("--model", "flashback-mini"), "is no GGUF file, which --engine llama.cpp needs"
    yield ("--model", str(words), "--adapter", "x"), "--adapter x: llama.cpp runs a GGUF file"
    yield ("--model", str(words), "--weights", "int8"), "weights are as in the file"
    yield ("--model", str(words), "--dtype", "bfloat16"), "expected float32, or auto"
    yield ("--model", str(words), "--device", "cuda"), "runs on CPUs only"
    yield ("--model", str(words), "--window", "513"), "expected 1 to 512"


def test_what_cannot_be_had_is_one_line(
    words: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments, line in problems(words, tmp_path):
        code = 1 if "cut" in arguments[1] or "mini" in arguments[1] else 2
        text = ("generate", "--engine", "llama.cpp", "--pattern", "none", *arguments, "a text")
        assert line in refused(*text, code=code)
    assert "llama_" not in capfd.readouterr().err  # its own lines are not printed


def test_a_missing_package_names_the_extra(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    found = refused(
        "generate", "--engine", "llama.cpp", "--pattern", "none", "--model", words, "a", code=1
    )
    assert "install FlashBack with the extra llama" in found
