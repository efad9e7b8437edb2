"""The slot of a vLLM server that has FlashBack's connector, by requests (`vllm_connector`).

The server finds the blocks of a text by its ids and a salt, and cannot know with which passages in
view they were computed. That is held here, for every salt: so a completion is a function of its
prompt, as everywhere. What the server has lost, or never had, is computed anew in the prompt's own
order, a request for each segment but the last.
"""

import contextlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator

from flashback.engines.openai_body import body_of
from flashback.engines.openai_stream import TokenStream
from flashback.engines.openai_wire import Record, Wire
from flashback.engines.protocol import Request, Usage
from flashback.errors import EngineError, SettingsError
from flashback.patterns.held import HeldTokens
from flashback.patterns.prompt import Ids, PlacedPassage, Prompt, Segment
from flashback.wire.http import Failure

CONNECTOR = "flashback"
"""Of what the connector is asked, and answers."""
_TEXTS = 256
"""Texts that are held, at most."""


class RemoteSlot:
    """Texts with passages at reserved positions, on one server. Safe to share between threads."""

    def __init__(self, wire: Wire, model: str, block: int, passages: int) -> None:
        """Nothing is held.

        Args:
            model: its name at the server.
            block: tokens of a block.
            passages: blocks that the server keeps of passages.
        """
        self.block = block
        self._wire = wire
        self._model = model
        self._most = passages * block
        self._lock = threading.Condition()
        self._free = self._most
        """Tokens of passages that the server can keep beside those that are needed now."""
        self._shown: OrderedDict[PlacedPassage, None] = OrderedDict()
        """Passages that the server keeps, if it is still the same."""
        self._texts: OrderedDict[str, HeldTokens] = OrderedDict()
        """Of every salt, what its blocks hold; without those that are being written."""

    def check(self, prompt: Prompt) -> None:
        """Refuse a prompt whose passages do not stand in blocks in front of it.

        Raises:
            SettingsError: that is so.
        """
        layout = prompt.layout
        in_front = layout.sink == prompt.ids[: layout.history]
        in_blocks = layout.passage_end % self.block == 0
        full = all(len(one.passage) == layout.reserved for one in _behind(prompt))
        if not (in_front and in_blocks and full):
            raise SettingsError(
                "this engine's slot is in front of a text, and in whole blocks of "
                f"{self.block} tokens; use append or prepend"
            )
        if layout.passage_end > self._most:
            raise SettingsError(
                f"a slot of {layout.passage_end} tokens, and the server keeps {self._most} of "
                "passages; raise passage_bytes in its kv_connector_extra_config"
            )

    def tokens(self, request: Request) -> Generator[int]:
        """The ids of a completion; the sampler is not told of them.

        Raises:
            EngineError: see `TokenStream.tokens`.
        """
        salt, held = self._take(request.prompt)
        began = False
        try:
            for token in self._written(request, salt, held):
                began = True
                yield token
        except EngineError as error:
            if began or not _may_be_lost(error):
                raise
            # The server has lost something that is held here, or never had it.
            self._forget(request.prompt)
            salt, held = _new_text(request.prompt)
            yield from self._written(request, salt, held)
        self._give_back(salt, held)

    def _written(self, request: Request, salt: str, held: HeldTokens) -> Generator[int]:
        """Compute what is missing, and stream the rest; notes in `held` what the server has."""
        prompt = request.prompt
        written: list[int] = []
        with contextlib.ExitStack() as passage:
            passage.enter_context(self._room(prompt.layout.passage_end))
            for token in self._streamed(request, salt, held.common_prefix(prompt)):
                passage.close()  # it is in the text's own blocks now
                written.append(token)
                yield token
        held.ids = [*prompt.ids, *written[:-1]]
        held.views = list(prompt.views)

    def _streamed(self, request: Request, salt: str, valid: int) -> Generator[int]:
        prompt, spent = request.prompt, Usage()
        began = time.perf_counter()
        *before, last = _behind(prompt)
        for segment in before:
            if segment.start + len(segment.ids) > valid:
                self._show(prompt, segment, spent)
                self._compute(prompt, segment, salt, valid, spent)
                valid = segment.start + len(segment.ids)
        self._show(prompt, last, spent)
        spent.prefill_seconds = time.perf_counter() - began
        ids = _in_slot(prompt, len(prompt.ids))
        body = body_of(self._model, ids, request.max_tokens, request.sampler, salt)
        body |= self._asked(prompt, last, valid)
        stream = TokenStream(self._wire, body, request.usage, spent, prompt.layout.reserved)
        yield from stream.tokens()

    @contextlib.contextmanager
    def _room(self, tokens: int) -> Iterator[None]:
        """Wait until the server can keep a passage of so many tokens beside others in use."""
        with self._lock:
            self._lock.wait_for(lambda: self._free >= tokens)
            self._free -= tokens
        try:
            yield
        finally:
            with self._lock:
                self._free += tokens
                self._lock.notify_all()

    def _compute(
        self, prompt: Prompt, segment: Segment, salt: str, valid: int, spent: Usage
    ) -> None:
        """Compute a segment that is not the prompt's last."""
        body = _body(self._model, _in_slot(prompt, segment.start + len(segment.ids)), salt)
        self._wire.whole(body | self._asked(prompt, segment, valid))
        spent.prefilled += segment.start + len(segment.ids) - max(valid, segment.start)

    def _asked(self, prompt: Prompt, segment: Segment, valid: int) -> Record:
        """What the connector is to do for a request that ends with a segment."""
        layout = prompt.layout
        front = layout.reserved
        asked = {
            "show": list(layout.sink + segment.passage),
            "valid": front + valid if valid > layout.history else 0,
            "needed": front + segment.start if segment.start > layout.history else 0,
            "salt": prompt.salt,
        }
        return {"kv_transfer_params": {CONNECTOR: asked}}

    def _show(self, prompt: Prompt, segment: Segment, spent: Usage) -> None:
        """Let the server compute and keep a passage that it has not kept."""
        passage = prompt.placed(segment.passage)
        with self._lock:
            known = passage in self._shown
            if known:
                self._shown.move_to_end(passage)
        if known:
            return
        ids = passage.behind_sink
        kept = {"keep": len(ids), "salt": prompt.salt}
        body = _body(self._model, ids, prompt.salt)
        self._wire.whole(body | {"kv_transfer_params": {CONNECTOR: kept}})
        spent.count_passage(passage)
        with self._lock:
            self._shown[passage] = None
            while sum(len(one.behind_sink) for one in self._shown) > self._most:
                self._shown.popitem(last=False)

    def _take(self, prompt: Prompt) -> tuple[str, HeldTokens]:
        """The longest text that a prompt goes on with; a new one if there is none.

        Under one salt the server has one line of tokens. So what a prompt must not find of it is in
        view of the connector, which forgets it.
        """
        with self._lock:
            begun = [salt for salt, held in self._texts.items() if _goes_on(prompt, held)]
            if not begun:
                return _new_text(prompt)
            best = max(begun, key=lambda salt: len(self._texts[salt].ids))
            return best, self._texts.pop(best)

    def _forget(self, prompt: Prompt) -> None:
        """A prompt's passages may be lost."""
        with self._lock:
            for segment in prompt.segments:
                self._shown.pop(prompt.placed(segment.passage), None)

    def _give_back(self, salt: str, held: HeldTokens) -> None:
        with self._lock:
            self._texts[salt] = held
            if len(self._texts) > _TEXTS:
                self._texts.popitem(last=False)


def _new_text(prompt: Prompt) -> tuple[str, HeldTokens]:
    return secrets.token_hex(16), HeldTokens(prompt.layout, salt=prompt.salt)


def _goes_on(prompt: Prompt, held: HeldTokens) -> bool:
    """Whether a prompt begins with a text, and shares some of what was computed for it."""
    same = prompt.ids[: len(held.ids)] == tuple(held.ids)
    return same and held.common_prefix(prompt) > prompt.layout.history


def _may_be_lost(error: EngineError) -> bool:
    """Whether a server failed, and not a request."""
    return isinstance(error.__cause__, Failure) and not error.__cause__.own


def _behind(prompt: Prompt) -> list[Segment]:
    """The segments that see a passage; what is before them comes with its sink."""
    return [one for one in prompt.segments if one.start >= prompt.layout.history]


def _in_slot(prompt: Prompt, length: int) -> Ids:
    """The first `length` tokens of a text as they are sent: the same, whatever passage is shown."""
    layout, ids = prompt.layout, prompt.ids
    return ids[: layout.history] + (0,) * layout.reserved + ids[layout.history : length]


def _body(model: str, ids: Ids, salt: str) -> Record:
    """A request whose answer does not matter."""
    body: Record = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0}
    return body | ({"cache_salt": salt} if salt else {})
