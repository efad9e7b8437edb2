"""Conversations over replicas, simulated: what of their history is cached where they are sent.

A turn sends the history and a question. Its replica prefills what it has not cached, one request at
a time, and then decodes beside others. It keeps whole histories, those used last. When a replica
dies, requests without a first token go to another one at once, and a client whose answer broke off
asks again.

The routes are those of the server (`flashback.server.affinity`) and two that know no conversations.
Everything is drawn before it begins, so that all routes see the same conversations.
"""

import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from flashback.benchmark.harness import nothing
from flashback.benchmark.replicas_settings import ReplicasSettings
from flashback.server.affinity import Bound, choose

Route = Callable[[str, Mapping[str, int]], str]
"""The replica for a conversation's key, given the requests that each replica has."""
_UNBOUNDED = 1e9


def routes(settings: ReplicasSettings) -> dict[str, Route]:
    """Every route by name, each to be used once: a round has a state."""
    bound = Bound(settings.load_factor, settings.free_requests)
    turn = itertools.count()

    def in_turns(_: str, active: Mapping[str, int]) -> str:
        return sorted(active)[next(turn) % len(active)]

    return {
        "affinity": lambda key, active: choose(key, active, bound),
        "affinity, no bound": lambda key, active: choose(key, active, Bound(_UNBOUNDED)),
        "least loaded": lambda _, active: choose(None, active, bound),
        "round robin": in_turns,
    }


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: int
    """Tokens."""
    answer: int
    thinking: float
    """Seconds before the question."""


@dataclass(frozen=True)
class Conversation:
    """Turns, one after another."""

    name: str
    key: str
    """What it is routed by: its name, or that of all hot ones."""
    begins: float
    """Seconds."""
    turns: tuple[Turn, ...]


def conversations(settings: ReplicasSettings) -> Iterator[Conversation]:
    """The conversations of a seed: Poisson arrivals, geometric turns, exponential lengths."""
    draw = random.Random(settings.seed)
    now = 0.0

    def tokens(mean: int) -> int:
        return 1 + int(draw.expovariate(1 / mean))

    for number in range(settings.conversations):
        now += draw.expovariate(settings.arrivals)
        turns: list[Turn] = []
        while not turns or draw.random() > 1 / settings.turns:
            thinking = draw.expovariate(1) * settings.thinking if turns else 0.0
            question, answer = tokens(settings.question_tokens), tokens(settings.answer_tokens)
            turns.append(Turn(question, answer, thinking))
        name = f"conversation {number}"
        key = "hot" if draw.random() < settings.hot else name
        yield Conversation(name, key, now, tuple(turns))


@dataclass(frozen=True)
class Served:
    """A turn that got its first token."""

    began: float
    """Seconds from the start, when it was sent first."""
    waited: float
    """Seconds to the first token; those of a replica that died included."""
    history: int
    """Tokens before the question."""
    reused: int
    """Of them, those cached where it was sent."""


@dataclass
class Outcome:
    """What one route came to."""

    route: str
    served: list[Served] = field(default_factory=list)
    moved: int = 0
    """Requests that were sent again before their first token."""
    broken: int = 0
    """Answers that broke off."""
    work: dict[str, float] = field(default_factory=dict)
    """Seconds of prefilling at each replica."""


@dataclass(eq=False)
class _Replica:
    name: str
    room: int
    """Tokens."""
    up: bool = True
    cached: "OrderedDict[str, int]" = field(default_factory=OrderedDict)
    """Tokens of each conversation, the one used last behind."""
    size: int = 0
    free_at: float = 0.0
    """When it has prefilled all that it was sent."""
    requests: "set[_Request]" = field(default_factory=set)

    def keep(self, name: str, tokens: int) -> None:
        """Cache a conversation, and let go of those used longest ago."""
        self.size += tokens - self.cached.pop(name, 0)
        self.cached[name] = tokens
        while self.size > self.room:
            self.size -= self.cached.popitem(last=False)[1]

    def die(self) -> None:
        self.up, self.size, self.free_at = False, 0, 0.0
        self.cached.clear()


@dataclass(eq=False)
class _Request:
    conversation: Conversation
    number: int
    """Of the turn."""
    history: int
    began: float
    """When it was sent first."""
    written: bool = False
    """It has its first token."""

    @property
    def turn(self) -> Turn:
        return self.conversation.turns[self.number]

    @property
    def prompt(self) -> int:
        return self.history + self.turn.question


class Simulation:
    """One route, from the first conversation to the last answer."""

    def __init__(self, settings: ReplicasSettings, name: str) -> None:
        """Begin with empty caches."""
        self._settings = settings
        self._route = routes(settings)[name]
        names = [f"http://replica-{number}:8000" for number in range(settings.replicas)]
        self._replicas = {one: _Replica(one, settings.cache_tokens) for one in names}
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self.outcome = Outcome(name, work=dict.fromkeys(names, 0.0))

    def run(self, on_step: Callable[[], None] = nothing) -> Outcome:
        """Let everything happen.

        Args:
            on_step: called after each conversation's first question.
        """
        for one in conversations(self._settings):
            self._at(one.begins, partial(self._arrive, one, on_step))
        if (death := self._settings.death) is not None:
            victim = next(iter(self._replicas.values()))
            self._at(death, partial(self._die, victim))
            self._at(death + self._settings.dead, partial(setattr, victim, "up", True))
        while self._events:
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        return self.outcome

    def _at(self, when: float, happen: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happen))

    def _arrive(self, conversation: Conversation, on_step: Callable[[], None]) -> None:
        self._ask(_Request(conversation, 0, 0, self._now))
        on_step()

    def _ask(self, request: _Request) -> None:
        """Send a request to a replica, which prefills it after those before it."""
        active = {one.name: len(one.requests) for one in self._replicas.values() if one.up}
        replica = self._replicas[self._route(request.conversation.key, active)]
        replica.requests.add(request)
        reused = min(replica.cached.get(request.conversation.name, 0), request.history)
        seconds = (request.prompt - reused) / self._settings.prefill_rate
        replica.free_at = max(replica.free_at, self._now) + seconds
        self.outcome.work[replica.name] += seconds
        replica.keep(request.conversation.name, request.prompt)
        self._at(replica.free_at, partial(self._write, replica, request, reused))

    def _write(self, replica: _Replica, request: _Request, reused: int) -> None:
        """The first token of an answer."""
        if request not in replica.requests:
            return  # the replica has died
        request.written = True
        waited = self._now - request.began
        self.outcome.served.append(Served(request.began, waited, request.history, reused))
        seconds = request.turn.answer / self._settings.decode_rate
        self._at(self._now + seconds, partial(self._end, replica, request))

    def _end(self, replica: _Replica, request: _Request) -> None:
        """The last token of an answer; the next question comes later."""
        if request not in replica.requests:
            return
        replica.requests.remove(request)
        history = request.prompt + request.turn.answer
        replica.keep(request.conversation.name, history)
        if request.number + 1 < len(request.conversation.turns):
            following = _Request(request.conversation, request.number + 1, history, 0.0)
            self._at(self._now + following.turn.thinking, partial(self._begin, following))

    def _begin(self, request: _Request) -> None:
        request.began = self._now
        self._ask(request)

    def _die(self, replica: _Replica) -> None:
        """Its requests go elsewhere; whoever has read a part of the answer asks again."""
        left = sorted(replica.requests, key=lambda one: (one.began, one.conversation.name))
        replica.requests.clear()
        replica.die()
        for request in left:
            again = _Request(request.conversation, request.number, request.history, request.began)
            if request.written:
                self.outcome.broken += 1
                again.began = self._now
            else:
                self.outcome.moved += 1
            self._ask(again)


def simulate(settings: ReplicasSettings, on_step: Callable[[], None] = nothing) -> list[Outcome]:
    """Every route, on the same conversations."""
    return [Simulation(settings, name).run(on_step) for name in routes(settings)]
