"""A model behind an OpenAI-compatible server that takes token ids, such as vLLM.

The server keeps the caches: it reuses the longest prefix that it has of a prompt, in whole blocks.
So appended passages cost there what they cost here, and every stride is one request of ids. Nothing
that counts is kept here between two completions, so a server that comes back after it died goes on
where it was: it computes the whole prompt once. A slot needs a connector there (`openai_slot`).
"""

import warnings
from collections.abc import Generator, Iterator

from flashback.engines.openai_batch import RemoteBatch
from flashback.engines.openai_body import body_of
from flashback.engines.openai_slot import RemoteSlot
from flashback.engines.openai_stream import TokenStream
from flashback.engines.openai_wire import CONNECTIONS, Wire
from flashback.engines.protocol import Capabilities, Completion, Request, Usage
from flashback.errors import FlashBackWarning, SettingsError
from flashback.patterns.prompt import Prompt
from flashback.sampling import Sampler


class OpenAIEngine:
    """An `Engine` behind a wire. Safe to share between threads."""

    def __init__(self, wire: Wire, model: str, window: int, slot: RemoteSlot | None = None) -> None:
        """Take a server as it is.

        Args:
            model: its name there.
            window: the most positions that it computes.
            slot: what shows passages in it; None: it has no slot.
        """
        self.wire = wire
        self.model = model
        self.slot = slot
        self.capabilities = Capabilities(
            window,
            slot=slot is not None,
            concurrent=CONNECTIONS,
            chooses_here=False,
            block=1 if slot is None else slot.block,
        )
        self._told = False

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        """See `Engine.complete`. A failure comes with the first token, or later.

        Raises:
            SettingsError: the prompt is empty, has reserved positions, or exceeds the window.
        """
        self._check(prompt, max_tokens)
        usage = Usage()
        return Completion(self._written(prompt, max_tokens, sampler, usage), usage)

    def batch(self, rows: int) -> RemoteBatch:
        """See `BatchingEngine.batch`: requests at a time, which the server computes together."""
        return RemoteBatch(self.tokens, min(rows, self.capabilities.concurrent))

    def tokens(self, request: Request) -> Generator[int]:
        """The ids of a completion; the sampler is not told of them.

        Raises:
            SettingsError: see `complete`.
            EngineError: the server cannot be reached, refuses, or answers nonsense.
        """
        self._check(request.prompt, request.max_tokens)
        self._warn(request)
        prompt = request.prompt
        if self.slot is not None and prompt.layout.reserved:
            return self.slot.tokens(request)
        body = body_of(self.model, prompt.ids, request.max_tokens, request.sampler, prompt.salt)
        return TokenStream(self.wire, body, request.usage).tokens()

    def _written(
        self, prompt: Prompt, max_tokens: int, sampler: Sampler, usage: Usage
    ) -> Iterator[int]:
        found = self.tokens(Request(prompt, max_tokens, sampler, usage))
        try:
            for token in found:
                sampler.accept(token)
                yield token
        finally:
            found.close()

    def _check(self, prompt: Prompt, max_tokens: int) -> None:
        if max_tokens < 1:
            raise SettingsError(f"{max_tokens} tokens asked for; expected at least 1")
        if not prompt.ids:
            raise SettingsError("the prompt is empty; expected at least one token")
        if prompt.layout.reserved:
            if self.slot is None:
                raise SettingsError("this engine has no slot; use append or prepend")
            self.slot.check(prompt)
        length = len(prompt.ids) + prompt.layout.reserved
        if length + max_tokens > self.capabilities.window:
            raise SettingsError(
                f"{length} prompt and {max_tokens} new tokens exceed the server's window "
                f"of {self.capabilities.window}"
            )

    def _warn(self, request: Request) -> None:
        """Say once that a server's penalty is for all that it is sent."""
        penalised = request.sampler.settings.repetition_penalty != 1
        if penalised and not self._told and len(request.prompt.ids) > len(request.sampler.history):
            self._told = True
            warnings.warn(
                "--repetition-penalty: this engine's server counts tokens of passages, too",
                FlashBackWarning,
                stacklevel=4,
            )
