"""A transformers model in this process, with prefix reuse.

Knows token ids and caches. Knows nothing of passages, patterns or strides.

A cached sequence holds the keys and values of positions [0, n) of some token sequence. A prompt of
P tokens whose longest common prefix with it is c (c < P, so that one token is left to compute
logits from) is completed like this:

    [0, c)     kept: the cache is cut back to c
    [c, P)     encoded in one pass, which gives the first new token
    [P, ...)   decoded, one pass per further token

How deep a cache can be cut is `engines/cache.py`'s business; a prompt that would need a deeper cut
starts a new sequence.

With a slot, [0, c) must also have been computed with the same passages in view. The rest is encoded
piece by piece, each with its own passage in the slot: one piece of one token at a stride boundary.
"""

import contextlib
import inspect
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from flashback.engines.batch import LocalBatch
from flashback.engines.cache.layers import (
    States,
    full_layers,
    has_full_attention_only,
    new_cache,
    states_alone,
)
from flashback.engines.cache.leases import Leases
from flashback.engines.cache.passages import PassageCache
from flashback.engines.cache.sequence import CachedSequence
from flashback.engines.kernels.attention import Attention
from flashback.engines.kernels.fixed_passes import FixedPasses, NewTokens, Recorder
from flashback.engines.kernels.joint_pass import PassageApart
from flashback.engines.kernels.last_layer import LastLayer, WholeLastLayer
from flashback.engines.protocol import CacheUse, Capabilities, Completion, Usage
from flashback.engines.self_check import (
    check_cache_reuse,
    has_fixed_batches,
    has_fixed_passes,
    has_joint_passes,
    label,
    refuse_uncuttable,
)
from flashback.errors import SettingsError, UnsupportedReader
from flashback.patterns.prompt import Ids, Prompt
from flashback.sampling import Sampler

_ALIBI = ("bloom", "mpt")
"""Models without positions of their own: a cached passage is as far away as it is long."""

PASSAGE_BYTES = 1 << 28
"""What a passage cache may take, unless told otherwise."""


class LocalEngine:
    """Runs a decoder-only model; see the module's docstring for what it reuses."""

    def __init__(
        self,
        model: PreTrainedModel,
        window: int,
        *,
        idle_sequences: int = 1,
        idle_bytes: int | None = None,
        passage_bytes: int = PASSAGE_BYTES,
        self_check: bool = True,
        fixed_passes: bool | None = None,
    ) -> None:
        """Take over a model.

        Args:
            model: in evaluation mode, on its device.
            window: the most positions a sequence may have.
            idle_sequences: how many caches to keep when no completion is using them.
            idle_bytes: keep as many bytes of them instead, for texts that are written by turns:
                the cache of one that is not finished is copied for others, never cut.
            passage_bytes: keys and values of slot passages to keep, at most.
            self_check: compare cached with recomputed logits once, now.
            fixed_passes: run short passes at fixed places in memory, recorded on CUDA
                (`fixed_passes.py`), if the reader can; None: on CUDA only. Whether it can is
                computed once, now, unless it is True and there is no self-check.

        Raises:
            UnsupportedReader: the model's cache cannot be cut back, or the self-check failed.
        """
        refuse_uncuttable(model)
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        placed = self._takes_positions or model.config.model_type in _ALIBI
        slot = placed and has_full_attention_only(model)
        self.capabilities = Capabilities(window=window, slot=slot)
        self.passages = PassageCache(passage_bytes)
        self._takes_keep = "logits_to_keep" in parameters
        self._attention = Attention(model)
        self._last_layer = LastLayer(model)
        self.lock = threading.RLock()
        self.leases = Leases(self.lock, idle_sequences=idle_sequences, idle_bytes=idle_bytes)
        self._fixed_batches: bool | None = None
        self.fixed: FixedPasses | None = None
        if self_check:
            self._check()
        on_cuda = model.device.type == "cuda"
        if slot and self._takes_positions and (on_cuda if fixed_passes is None else fixed_passes):
            self.fixed = FixedPasses(model.device, Recorder() if on_cuda else None)
            known = fixed_passes is True and not self_check
            if not known and not has_fixed_passes(self):
                self.fixed = None
            if self_check and self.fixed is not None:
                check_cache_reuse(self)  # cuts between fixed passes, too

    def _check(self) -> None:
        """Run the self-check; leave the last layer whole if it is not like others."""
        try:
            return check_cache_reuse(self)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a layer may fail in any way; whole, it says what is wrong
            self._last_layer = WholeLastLayer(self.model)
            self.leases.taken.clear()
            self.forget()
        return check_cache_reuse(self)

    def another(self, passage_bytes: int) -> "LocalEngine":
        """An engine of the same model that holds nothing and need not find out what this one did.

        Args:
            passage_bytes: keys and values of slot passages to keep, at most.
        """
        engine = LocalEngine(
            self.model,
            self.capabilities.window,
            passage_bytes=passage_bytes,
            self_check=False,
            fixed_passes=self.fixed is not None,
        )
        engine._last_layer = self._last_layer
        with self.lock:
            engine.joins_passages = self.joins_passages
        return engine

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        """See `Engine.complete`.

        Raises:
            SettingsError: the prompt has a slot and the reader can have none, or one unlike that
                of the stored passages; the prompt is empty, or it exceeds the window; no token is
                asked for.
        """
        if max_tokens < 1:
            raise SettingsError(f"{max_tokens} tokens asked for; expected at least 1")
        self.check_request(prompt, max_tokens)
        usage = Usage()
        return Completion(self._complete(prompt, max_tokens, sampler, usage), usage)

    @torch.inference_mode()
    def score(self, ids: Sequence[int], start: int) -> list[float]:
        """See `Engine.score`.

        Raises:
            SettingsError: `start` is not in [1, len(ids)), or the ids exceed the window.
        """
        self.check_request(Prompt.plain(tuple(ids)), 0)
        if not 1 <= start < len(ids):
            raise SettingsError(f"score starts at {start}; expected 1 to {len(ids) - 1}")
        # ids[start - 1] must be encoded anew, since its logits are the first that are needed.
        sequence, _ = self.lease(Prompt.plain(tuple(ids[:start])))
        try:
            # Also while the logits are read, which the next pass may write over.
            with self._running(sequence):
                logits = self._forward(sequence, ids[len(sequence.ids) : -1], len(ids) - start)
                targets = torch.tensor(ids[start:], device=logits.device)
                chosen = logits.float().log_softmax(-1).gather(1, targets[:, None])
                scores: list[float] = chosen[:, 0].tolist()
        except BaseException:
            self.leases.give_up(sequence)
            raise
        self.leases.give_back(sequence)
        return scores

    def batch(self, rows: int) -> LocalBatch:
        """See `BatchingEngine.batch`.

        Raises:
            UnsupportedReader: rows of different lengths are not exact with this model.
        """
        if self._fixed_batches is None:
            self._fixed_batches = has_fixed_batches(self)
        return LocalBatch(self, rows, fixed=self._fixed_batches)

    def forget(self) -> None:
        """Drop every idle cache and passage: the next completion starts from nothing."""
        with self.lock:
            self.leases.idle.clear()
            if self.fixed is not None:
                self.fixed.forget()
        self.passages.forget()

    @property
    def held(self) -> tuple[int, int]:
        """How many caches no completion is using, and their bytes; a pass is not waited for."""
        return self.leases.held

    @property
    def cache_use(self) -> CacheUse:
        """See `CachingEngine.cache_use`."""
        return CacheUse(*self.leases.held, self.passages.bytes)

    def fresh(self, share: int) -> "LocalEngine":
        """See `CachingEngine.fresh`."""
        return self.another(self.passages.budget // share)

    def check_request(self, prompt: Prompt, max_tokens: int) -> None:
        """Refuse what cannot be completed; see `complete` for the errors."""
        if prompt.reserved and not self.capabilities.slot:
            raise SettingsError(
                f"{label(self.model)} has layers that see a sliding window only, which a slot "
                "before the context would leave; use another pattern"
            )
        length, room = len(prompt.ids), prompt.reserved
        if length == 0:
            raise SettingsError("the prompt is empty; expected at least one token")
        if room + length + max_tokens > self.capabilities.window:
            slot = f"{room} slot, " if room else ""
            raise SettingsError(
                f"{slot}{length} prompt and {max_tokens} new tokens exceed the window of "
                f"{self.capabilities.window}"
            )

    def _complete(
        self, prompt: Prompt, max_tokens: int, sampler: Sampler, usage: Usage
    ) -> Iterator[int]:
        started = time.perf_counter()
        sequence, shared = self.lease(prompt, sampler)
        try:
            token = self._first_token(sequence, prompt, shared, sampler, usage)
            usage.reused = max(len(prompt.arranged) - usage.encoded, 0)
            usage.encode_seconds = time.perf_counter() - started
            yield token
            for _ in range(max_tokens - 1):
                started = time.perf_counter()
                token = self._step(sequence, [token], sampler)
                usage.decoded += 1
                usage.decode_seconds += time.perf_counter() - started
                yield token
        except GeneratorExit:  # closed between two passes: the cache is whole
            self.leases.give_back(sequence)
            raise
        except BaseException:
            self.leases.give_up(sequence)
            raise
        self.leases.give_back(sequence)

    @contextlib.contextmanager
    def _running(self, sequence: CachedSequence) -> Iterator[None]:
        """One pass at a time; if it fails, the sequence is given up before others look at it."""
        with self.lock, torch.inference_mode():
            try:
                yield
            except BaseException:  # some layers may have grown, others not
                self.leases.give_up(sequence)
                raise

    def _first_token(
        self, sequence: CachedSequence, prompt: Prompt, start: int, sampler: Sampler, usage: Usage
    ) -> int:
        """Encode what is behind `start`, each piece with its passage in view, and choose."""
        *earlier, last = ((one.passage, one.ids) for one in prompt.after(start))
        for piece in earlier:
            with self._running(sequence):
                self._encode(sequence, *piece, usage)
        with self._running(sequence):
            return sampler.choose(self._encode(sequence, *last, usage)[-1])

    def _encode(
        self, sequence: CachedSequence, passage: Ids, ids: Sequence[int], usage: Usage
    ) -> Tensor:
        """Encode tokens with a passage in view; the logits behind the last of them, (1, V).

        Called while the sequence is `_running`; counts what it encodes.
        """
        usage.encoded += len(ids)
        if sequence.shown == passage:
            return self._forward(sequence, ids, 1)
        states = self.passages.find(passage, sequence.room) if passage else None
        if passage and states is None:
            usage.encoded += len(passage)
            if self.joins_passages:
                logits = self.joint_pass(sequence, passage, ids)
                came = [layer.take_passage() for layer in full_layers(sequence.cache)]
                self.passages.add(passage, sequence.room, came)
                return logits
            states = self.encode_passage(passage, sequence.room)
            self.passages.add(passage, sequence.room, states)
        sequence.show(passage, states)
        return self._forward(sequence, ids, 1)

    @cached_property
    def joins_passages(self) -> bool:
        """Whether a slot's passage is encoded in the pass of the tokens behind it."""
        # Recorded passes are of fixed shapes.
        possible = self.capabilities.slot and self._takes_positions and self.fixed is None
        return possible and has_joint_passes(self)

    def joint_pass(self, sequence: CachedSequence, passage: Ids, ids: Sequence[int]) -> Tensor:
        """Put a passage into the slot while tokens are encoded that see it; see `joint_pass.py`.

        Called with the lock, in inference mode, of an engine that `joins_passages`.

        Returns:
            The logits behind the last of them, (1, V).

        Raises:
            UnsupportedReader: the model's attention is not PyTorch's any more.
        """
        layers, end = full_layers(sequence.cache), sequence.end
        for layer in layers:
            layer.await_passage(len(passage))
        device = self.model.device
        tokens = torch.tensor([[*passage, *ids]], device=device)
        slot = torch.arange(sequence.room - len(passage), sequence.room, device=device)
        context = torch.arange(end, end + len(ids), device=device)
        apart = PassageApart(len(passage), len(ids))
        with apart.of(self.model.config):
            logits = self.run(tokens, torch.cat((slot, context))[None], sequence.cache, 1)[0]
        if apart.calls != len(layers):
            raise UnsupportedReader(
                f"{label(self.model)} called PyTorch's attention {apart.calls} times in "
                f"{len(layers)} layers; expected once in each, as when it was loaded"
            )
        sequence.shown = passage
        sequence.encoded(ids)
        return logits

    def prepare(self, passage: Ids, room: int) -> None:
        """See `SlotEngine.prepare`."""
        self.passages.get(passage, room, self.encode_passage)

    def encode_passage(self, passage: Ids, room: int) -> list[States]:
        """Keys and values of a passage on its own, at the positions before `room`."""
        # On a CPU a thread that looks ahead may run beside the one that decodes.
        alone = self.fixed is not None or self.model.device.type != "cpu"
        with self.lock if alone else contextlib.nullcontext(), torch.inference_mode():
            if self.fixed is not None:
                encode = partial(self.states_alone, fixed=True)
                if (states := self.fixed.encode(encode, passage, room)) is not None:
                    return states
            ids = torch.tensor([passage], device=self.model.device)
            positions = torch.arange(room - len(passage), room, device=self.model.device)[None]
            return self.states_alone(ids, positions)

    def states_alone(self, ids: Tensor, positions: Tensor, fixed: bool = False) -> list[States]:
        """Keys and values of ids (1, T) at positions (1, T), with nothing else in view."""
        return states_alone(
            self.model, lambda cache: self.run(ids, positions, cache, 1, fixed=fixed)
        )

    def _step(self, sequence: CachedSequence, ids: Sequence[int], sampler: Sampler) -> int:
        with self._running(sequence):
            return sampler.choose(self._forward(sequence, ids, 1)[-1])

    def _forward(self, sequence: CachedSequence, ids: Sequence[int], keep: int) -> Tensor:
        """Encode `ids` behind what is cached; the logits of the last `keep` of them, (keep, V)."""
        start = sequence.end
        logits = self._fixed_pass(sequence, ids) if keep == 1 else None
        if logits is None:
            logits = self.run(
                torch.tensor([list(ids)], device=self.model.device),
                torch.arange(start, start + len(ids), device=self.model.device)[None],
                sequence.cache,
                keep,
            )[0]
        sequence.encoded(ids)
        return logits

    def _fixed_pass(self, sequence: CachedSequence, ids: Sequence[int]) -> Tensor | None:
        """The logits behind the last of `ids`, (1, V); None: this pass is no fixed one."""
        if self.fixed is None or (tokens := self.fixed.tokens(len(ids))) is None:
            return None
        layers = full_layers(sequence.cache)
        if not all(layer.is_initialized for layer in layers):
            return None
        for layer in layers:
            layer.reserve(tokens)
        new = NewTokens(ids, sequence.end, sequence.first)
        buffers = [layer.buffers for layer in layers]
        logits = self.fixed.step(self.run, sequence.cache, buffers, [new], tokens)
        for layer in layers:
            layer.advance(len(ids))
        return logits

    def run(
        self,
        ids: Tensor,
        positions: Tensor,
        cache: DynamicCache,
        keep: int,
        *,
        fixed: bool = False,
        **more: Any,
    ) -> Tensor:
        """One pass over new tokens (B, T) at `positions` (B, T): the last logits, (B, keep, V).

        Args:
            fixed: its shapes will come again; see `fixed_passes.py`.
        """
        if self._takes_positions:
            more["position_ids"] = positions
        if self._takes_keep:  # the vocabulary's rows are half of a small model's work
            more["logits_to_keep"] = keep
        tokens = ids.shape[1]
        narrowed = self._last_layer.narrowed(keep) if keep < tokens else contextlib.nullcontext()
        behind = cache.get_seq_length() > 0
        with self._attention.for_pass(tokens, fixed=fixed, behind=behind), narrowed:
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **more)
        logits: Tensor = output.logits[:, -keep:]
        return logits

    def lease(self, prompt: Prompt, writer: Sampler | None = None) -> tuple[CachedSequence, int]:
        """The sequence to go on from, and how much of the prompt's context it holds."""
        return self.leases.take(prompt, writer, self.new_sequence)

    def new_sequence(self, room: int) -> CachedSequence:
        """Nothing held, behind a slot of so many positions."""
        return CachedSequence(room, cache=new_cache(self.model, room))
