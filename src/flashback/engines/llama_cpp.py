"""A model in a GGUF file, run by llama.cpp in this process, with prefix reuse and a slot.

A completion keeps the longest prefix that is held of its prompt (`llama_memory.py`), computes the
rest segment by segment, each with its passage in view, and hands every token's logits to the
sampler. Completions under way share the cells: one whose cells were taken away for others computes
its text again when it goes on.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flashback.engines.llama_library import LlamaContext, LlamaModel, Shape
from flashback.engines.llama_memory import LlamaMemory, Numbers, TextSequence
from flashback.engines.protocol import CacheUse, Capabilities, Completion, Usage
from flashback.errors import SettingsError, UnsupportedReader
from flashback.patterns.prompt import Ids, Layout, Prompt, Segment, View
from flashback.sampling import Sampler

_LOG = logging.getLogger(__name__)
CACHE_BYTES = 1 << 28
"""The default size of the cells that are kept besides one text's."""
_MOST_KEPT = 4096
"""Of those cells: every token looks at the masks of all that are in use."""
_LEAST_KEPT = 64
"""For a sink that is computed beside a full window."""
ONE_TEXT, MANY_TEXTS = Numbers(texts=8, passages=4, idle=1), Numbers(texts=8, passages=8)
"""What is kept for one text after another, and for many texts and conversations."""
_EXACT, _ROUNDED = 1e-4, 5e-2
"""Largest difference of a logit between cached and recomputed, relative to the largest logit: with
keys and values in float32 and float16."""


class LlamaEngine:
    """Completes prompts with llama.cpp; see the module's docstring."""

    def __init__(
        self,
        model: LlamaModel,
        window: int,
        *,
        exact: bool,
        threads: int,
        cache_bytes: int | None = None,
        numbers: Numbers | None = None,
        self_check: bool = True,
    ) -> None:
        """Make the cells of a model.

        Args:
            model: its weights.
            window: the most positions a prompt and its continuation may take.
            exact: keep keys and values in float32; else in float16.
            threads: of a pass.
            cache_bytes: of keys and values, a window's at least; None: a window's, and
                `CACHE_BYTES` more, within limits.
            numbers: how many texts and passages are kept, at most; None: those of one text, or of
                many if `cache_bytes` are given.
            self_check: compare cached with recomputed logits once, now.

        Raises:
            ReaderError: there is not enough memory.
            UnsupportedReader: cached logits differ from recomputed ones.
        """
        self.model, self.exact, self.threads = model, exact, threads
        self._cell_bytes = model.cell_bytes(exact)
        self._given_bytes = cache_bytes
        numbers = numbers or (ONE_TEXT if cache_bytes is None else MANY_TEXTS)
        kept = min((cache_bytes or CACHE_BYTES) // self._cell_bytes, _MOST_KEPT)
        cells = window + kept if cache_bytes is None else cache_bytes // self._cell_bytes
        shape = Shape(max(cells, window + _LEAST_KEPT), numbers.sequences, exact, threads)
        self.memory = LlamaMemory(LlamaContext(model, shape), numbers)
        self.capabilities = Capabilities(window, slot=not model.slides)
        if self_check:
            _check_reuse(self)
            if self.capabilities.slot and not _has_slot(self):
                self.capabilities = Capabilities(window, slot=False)
            self.forget()

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        """See `Engine.complete`.

        Raises:
            SettingsError: the prompt has reserved positions and the model can have none; the
                prompt is empty, or it exceeds the window; no token is asked for.
        """
        self._check_request(prompt, max_tokens)
        usage = Usage()
        return Completion(self._complete(prompt, max_tokens, sampler, usage), usage)

    def fresh(self, share: int) -> "LlamaEngine":
        """See `CachingEngine.fresh`; the model's weights are shared."""
        window = self.capabilities.window
        engine = LlamaEngine(
            self.model,
            window,
            exact=self.exact,
            threads=self.threads,
            cache_bytes=(self._given_bytes or CACHE_BYTES) // share,
            numbers=self.memory.numbers,
            self_check=False,
        )
        engine.capabilities = self.capabilities
        return engine

    def forget(self) -> None:
        """See `CachingEngine.forget`: the next completion reuses nothing."""
        self.memory.forget()

    @property
    def cache_use(self) -> CacheUse:
        """See `CachingEngine.cache_use`; tokens that two texts share count for both."""
        idle = [len(one.ids) for one in list(self.memory.texts) if not one.leased]
        passages = sum(len(one.ids) for one in list(self.memory.passages))
        return CacheUse(len(idle), sum(idle) * self._cell_bytes, passages * self._cell_bytes)

    def _check_request(self, prompt: Prompt, max_tokens: int) -> None:
        length, reserved = len(prompt.ids), prompt.layout.reserved
        window = self.capabilities.window
        if max_tokens < 1:
            raise SettingsError(f"{max_tokens} tokens asked for; expected at least 1")
        if reserved and not self.capabilities.slot:
            raise SettingsError(
                f"model {self.model.name} can have no slot with llama.cpp; use another pattern"
            )
        if length == 0:
            raise SettingsError("the prompt is empty; expected at least one token")
        if reserved + length + max_tokens > window:
            slot = f"{reserved} slot, " if reserved else ""
            raise SettingsError(
                f"{slot}{length} prompt and {max_tokens} new tokens exceed the window of {window}"
            )

    def _complete(
        self, prompt: Prompt, max_tokens: int, sampler: Sampler, usage: Usage
    ) -> Iterator[int]:
        started, written = time.perf_counter(), list[int]()
        sequence, shared = self.memory.take(prompt, sampler)
        try:
            with self._pass(sequence):
                token = sampler.choose(self._prefilled(sequence, prompt, shared, usage))
            usage.count_reused(len(prompt.arranged))
            usage.cached = shared
            usage.prefill_seconds = time.perf_counter() - started
            yield token
            for _ in range(max_tokens - 1):
                started = time.perf_counter()
                written.append(token)
                with self.memory.lock:
                    if sequence.lost:
                        again = _grown(prompt, written)
                        sequence, shared = self.memory.take(again, sampler)
                    else:
                        again, shared = prompt, -1
                    with self._pass(sequence):
                        logits = self._next(sequence, token, again, shared)
                        token = sampler.choose(logits)
                usage.decoded += 1
                usage.decode_seconds += time.perf_counter() - started
                yield token
        finally:
            self.memory.give_back(sequence)

    def _next(self, sequence: TextSequence, token: int, again: Prompt, shared: int) -> Tensor:
        """The logits behind a token; behind the whole text again, where it was lost."""
        if shared < 0:
            return self.memory.extend(sequence, [token])
        return self._prefilled(sequence, again, shared, Usage())

    @contextlib.contextmanager
    def _pass(self, sequence: TextSequence) -> Iterator[None]:
        """Hold the memory, and give a sequence up if its pass fails."""
        with self.memory.lock:
            done = False
            try:
                yield
                done = True
            finally:
                if not done:
                    self.memory.give_up(sequence)

    def _prefilled(
        self, sequence: TextSequence, prompt: Prompt, shared: int, usage: Usage
    ) -> Tensor:
        """Compute the rest of a prompt segment by segment; the logits behind it, (V,)."""
        logits = None
        for segment in prompt.after(shared):
            logits = self._prefill(sequence, segment, usage)
        assert logits is not None
        return logits

    def _prefill(self, sequence: TextSequence, segment: Segment, usage: Usage) -> Tensor:
        """Compute a segment with its passage in view; counts what is computed."""
        usage.prefilled += len(segment.ids)
        if not segment.passage:
            self.memory.hide(sequence)
        elif sequence.passage != segment.passage:
            passage = sequence.placed(segment.passage)
            if not self.memory.show(sequence, passage):
                usage.count_passage(passage)
        return self.memory.extend(sequence, segment.ids)

    def logits(self, prompt: Prompt) -> Tensor:
        """Those behind a prompt, (V,), with what is held of it; a copy."""
        sequence, shared = self.memory.take(prompt, None)
        try:
            with self._pass(sequence):
                return self._prefilled(sequence, prompt, shared, Usage()).clone()
        finally:
            self.memory.give_back(sequence)


def _grown(prompt: Prompt, ids: Sequence[int]) -> Prompt:
    """A prompt with more tokens, seen as its last ones are."""
    *earlier, last = prompt.segments
    return replace(prompt, segments=(*earlier, replace(last, ids=(*last.ids, *ids))))


# The self-check


def _check_reuse(engine: LlamaEngine) -> None:
    """Compare cached with recomputed logits, through two successive cuts, the second deeper.

    Raises:
        UnsupportedReader: they differ by more than the tolerance.
    """
    length = max(2, min(24, engine.capabilities.window - 1))
    base, other = (_some_ids(engine, length, seed) for seed in (0, 1))
    prompts = [Prompt.plain(base[:n] + other[n:]) for n in (length, 2 * length // 3, length // 3)]
    if (error := _largest_difference(engine, prompts)) > 0:
        raise UnsupportedReader(
            f"model {engine.model.name} fails the self-check: logits from a cut-back cache differ "
            f"from recomputed ones by {error:.2g} (allowed: {_tolerance(engine):g} relative)"
        )


def _has_slot(engine: LlamaEngine) -> bool:
    """Whether exchanged passages are as if all was computed anew, and so is no passage."""
    ids = _some_ids(engine, 8, 2)
    layout = Layout(2, 4, ids[:1])
    if layout.reserved + len(ids) >= engine.capabilities.window:
        return True
    passages = [(), ids[3:7], ids[2:5]]
    views = [[View(2, passages[0])], [View(2, passages[0]), View(6, passages[1])]]
    views += [[View(2, passages[0]), View(5, passages[2])], [View(2, passages[1])]]
    try:
        error = _largest_difference(engine, [Prompt.with_views(ids, one, layout) for one in views])
    except UnsupportedReader as problem:
        _LOG.warning("%s", problem)
        return False
    if error > 0:
        _LOG.warning("model %s: no slot, its logits differ by %.2g", engine.model.name, error)
    return error == 0


def _largest_difference(engine: LlamaEngine, prompts: Sequence[Prompt]) -> float:
    """Of logits of prompts one after another, and of each alone; 0 if it is allowed."""
    engine.forget()
    held = [engine.logits(prompt) for prompt in prompts]
    largest = 0.0
    for prompt, cached in zip(prompts, held, strict=True):
        engine.forget()
        expected = engine.logits(prompt)
        error = float((cached - expected).abs().max())
        if not error <= _tolerance(engine) * max(1.0, float(expected.abs().max())):
            largest = max(largest, error, torch.finfo(torch.float32).tiny)
    return largest


def _tolerance(engine: LlamaEngine) -> float:
    return _EXACT if engine.exact else _ROUNDED


def _some_ids(engine: LlamaEngine, count: int, seed: int) -> Ids:
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = torch.randint(
        engine.model.vocabulary, (count,), generator=generator
    ).tolist()
    return tuple(found)
