"""A transformers model in this process, with prefix reuse.

A cached sequence holds the keys and values of positions [0, n) of some text. A prompt of P tokens
whose longest common prefix with it is c (c < P, so that one token is left to compute logits from)
is completed like this:

    [0, c)     cache hit: the cache is cut back to c
    [c, P)     prefilled in one pass, which gives the first new token
    [P, ...)   decoded, one pass per further token

`cache/layers.py` says how deep a cache can be cut; a prompt that would need a deeper cut starts a
new sequence.

With passages at reserved positions, [0, c) must also stand at the same positions, computed with the
same passages in view; what is computed without any is shared with all other patterns. The rest is
prefilled segment by segment, each with its own passage in view.
"""

import contextlib
import time
import warnings
from collections.abc import Iterator
from functools import cached_property

from torch import Tensor
from transformers import PreTrainedModel

from flashback.engines.batch import LocalBatch
from flashback.engines.cache.budget import Budget
from flashback.engines.cache.layers import full_layers
from flashback.engines.cache.leases import Leases
from flashback.engines.cache.passages import PassageCache
from flashback.engines.cache.sequence import CachedSequence
from flashback.engines.passes import Passes
from flashback.engines.protocol import CacheUse, Capabilities, Completion, Usage
from flashback.engines.self_check import choose_exact, has_fixed_batches, has_joint_passes
from flashback.engines.support import check_supported, label
from flashback.errors import SettingsError
from flashback.patterns.prompt import Prompt, Segment
from flashback.sampling import Sampler

CACHE_BYTES = 1 << 28
"""The default budget of an engine's caches."""


class LocalEngine:
    """Runs a decoder-only model; see the module's docstring for what it reuses."""

    def __init__(
        self,
        model: PreTrainedModel,
        window: int,
        *,
        idle_sequences: int | None = 1,
        cache_bytes: int = CACHE_BYTES,
        self_check: bool = True,
        fixed_passes: bool | None = None,
        passes: Passes | None = None,
    ) -> None:
        """Take over a model.

        Args:
            model: in evaluation mode, on its device.
            window: the most positions a sequence may have.
            idle_sequences: how many caches to keep when no completion has leased them; None: as
                many as `cache_bytes` allows, for many texts and conversations: one that is not
                finished, or would lose more than it keeps, is copied for others and not cut.
            cache_bytes: bytes of keys and values to keep, at most: of passages and, if
                `idle_sequences` is None, of running and idle sequences; what was used longest ago
                is evicted first.
            self_check: compare cached with recomputed logits once, now.
            fixed_passes: run short passes at fixed places in memory, recorded on CUDA
                (`fixed_passes.py`), if the model can; None: on CUDA only. Whether it can is
                computed once, now, unless it is True and there is no self-check.
            passes: of the model; None: the fastest ones.

        Raises:
            UnsupportedReader: the model's cache cannot be cut back, or the self-check failed.
        """
        check_supported(model)
        self.model = model
        self.passes = Passes(model) if passes is None else passes
        self.capabilities = Capabilities(window, self.passes.support.reserved_positions)
        self.budget = Budget(cache_bytes)
        self.passages = PassageCache(self.budget)
        self.leases = Leases(
            self.passes.new_sequence, self.passes.lock, self.budget, idle_sequences
        )
        choose_exact(self.passes, window, check=self_check, fixed=fixed_passes)

    def fresh(self, share: int) -> "LocalEngine":
        """See `CachingEngine.fresh`; the checks of the model are not repeated."""
        engine = LocalEngine(
            self.model,
            self.capabilities.window,
            idle_sequences=None,
            cache_bytes=self.budget.limit // share,
            self_check=False,
            fixed_passes=False,
            passes=self.passes.fresh(),
        )
        engine.joins_passages = self.joins_passages
        return engine

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        """See `Engine.complete`.

        Raises:
            SettingsError: the prompt has reserved positions and the reader can have none; the
                prompt is empty, or it exceeds the window; no token is asked for.
        """
        if max_tokens < 1:
            raise SettingsError(f"{max_tokens} tokens asked for; expected at least 1")
        self.check_request(prompt, max_tokens)
        usage = Usage()
        return Completion(self._complete(prompt, max_tokens, sampler, usage), usage)

    def batch(self, rows: int) -> LocalBatch:
        """See `BatchingEngine.batch`.

        Raises:
            UnsupportedReader: rows of different lengths are not exact with this model.
        """
        fixed = self._fixed_batches
        return LocalBatch(self.passes, self.passages, rows, fixed=fixed, check=self.check_request)

    def forget(self) -> None:
        """See `CachingEngine.forget`: the next completion reuses nothing."""
        with self.passes.lock:
            self.leases.idle.clear()
            self.passages.forget()
            if self.passes.fixed is not None:
                self.passes.fixed.forget()

    @property
    def cache_use(self) -> CacheUse:
        """See `CachingEngine.cache_use`."""
        return CacheUse(*self.leases.held, self.passages.bytes)

    @property
    def held(self) -> tuple[int, int]:
        """Deprecated: `cache_use`."""
        warnings.warn(
            "LocalEngine.held is now LocalEngine.cache_use", DeprecationWarning, stacklevel=2
        )
        return self.leases.held

    @cached_property
    def joins_passages(self) -> bool:
        """Whether a passage at reserved positions shares the pass of the tokens behind it."""
        # Recorded passes are of fixed shapes.
        possible = self.passes.support.explicit_positions and self.passes.fixed is None
        return possible and has_joint_passes(self.passes, self.capabilities.window)

    @cached_property
    def _fixed_batches(self) -> bool:
        return has_fixed_batches(self.passes, self.capabilities.window)

    def check_request(self, prompt: Prompt, max_tokens: int) -> None:
        """Refuse what cannot be completed; see `complete` for the errors."""
        length, reserved = len(prompt.ids), prompt.layout.reserved
        if reserved and not self.capabilities.slot:
            raise SettingsError(
                f"{label(self.model)} can have no slot: it {self.passes.support.without_slot}; use "
                "another pattern"
            )
        if length == 0:
            raise SettingsError("the prompt is empty; expected at least one token")
        if reserved + length + max_tokens > self.capabilities.window:
            slot = f"{reserved} slot, " if reserved else ""
            raise SettingsError(
                f"{slot}{length} prompt and {max_tokens} new tokens exceed the window of "
                f"{self.capabilities.window}"
            )

    def lease(self, prompt: Prompt, writer: Sampler | None = None) -> tuple[CachedSequence, int]:
        """The sequence to continue, and how many tokens of the prompt it holds."""
        return self.leases.take(prompt, writer)

    def _complete(
        self, prompt: Prompt, max_tokens: int, sampler: Sampler, usage: Usage
    ) -> Iterator[int]:
        started = time.perf_counter()
        sequence, shared = self.lease(prompt, sampler)
        try:
            token = self._first_token(sequence, prompt, shared, sampler, usage)
            usage.count_reused(len(prompt.arranged))
            usage.cached = shared
            usage.prefill_seconds = time.perf_counter() - started
            yield token
            for _ in range(max_tokens - 1):
                started = time.perf_counter()
                token = self._decode(sequence, token, sampler)
                usage.decoded += 1
                usage.decode_seconds += time.perf_counter() - started
                yield token
        finally:  # between two passes the cache is whole, whatever ends the completion there
            self.leases.give_back(sequence)

    @contextlib.contextmanager
    def _pass(self, sequence: CachedSequence) -> Iterator[None]:
        """Give a sequence up if its pass fails: some layers may have grown, others not."""
        try:
            yield
        except BaseException:
            self.leases.give_up(sequence)
            raise

    def _first_token(
        self, sequence: CachedSequence, prompt: Prompt, shared: int, sampler: Sampler, usage: Usage
    ) -> int:
        """Prefill the rest of a prompt segment by segment, and choose."""
        *earlier, last = prompt.after(shared)
        for segment in earlier:
            with self.passes.running(), self._pass(sequence):
                self._prefill(sequence, segment, usage)
        with self.passes.running():
            with self._pass(sequence):
                logits = self._prefill(sequence, last, usage)
            return sampler.choose(logits[-1])

    def _prefill(self, sequence: CachedSequence, segment: Segment, usage: Usage) -> Tensor:
        """Compute a segment with its passage in view; the logits of its last token, (1, V).

        Counts what is computed.
        """
        usage.prefilled += len(segment.ids)
        if sequence.passage == segment.passage:
            return self.passes.extend(sequence, segment.ids)
        if not segment.passage:
            sequence.show((), None)
            return self.passes.extend(sequence, segment.ids)
        passage = sequence.placed(segment.passage)
        if (states := self.passages.find(passage)) is None:
            usage.count_passage(passage)
            if self.joins_passages:
                logits = self.passes.extend_with_passage(sequence, passage, segment.ids)
                prefilled = [layer.take_passage() for layer in full_layers(sequence.cache)]
                self.passages.add(passage, prefilled)
                return logits
            states = self.passes.prefill_passage(passage)
            self.passages.add(passage, states)
        sequence.show(passage.ids, states)
        return self.passes.extend(sequence, segment.ids)

    def _decode(self, sequence: CachedSequence, token: int, sampler: Sampler) -> int:
        """Compute one token, and choose the next."""
        with self.passes.running():
            with self._pass(sequence):
                logits = self.passes.extend(sequence, [token])
            return sampler.choose(logits[-1])
