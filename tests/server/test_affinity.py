"""Where conversations belong: stable, even, and moved no more than they must be."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from flashback.server.affinity import Bound, choose, conversation_key

NAMES = [f"http://replica-{number}:8000" for number in range(8)]
IDLE = dict.fromkeys(NAMES, 0)
KEYS = [f"conversation {number}" for number in range(2000)]
_NAMES = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)


@given(_NAMES, st.text(), st.randoms())
def test_a_home_depends_on_the_names_alone(names: list[str], key: str, order: object) -> None:
    home = choose(key, dict.fromkeys(names, 0), Bound())
    assert home in names
    assert home == choose(key, dict.fromkeys(sorted(names, reverse=True), 0), Bound())
    without = {name: 0 for name in names if name != home}
    for other in without:
        # Whoever else leaves, the key stays.
        assert choose(key, {name: 0 for name in names if name != other}, Bound()) == home


def test_homes_are_spread_evenly() -> None:
    homes = Counter(choose(key, IDLE, Bound()) for key in KEYS)
    mean = len(KEYS) / len(NAMES)
    assert all(0.8 * mean < count < 1.2 * mean for count in homes.values())


def test_a_new_replica_takes_its_share_and_moves_nothing_else() -> None:
    more = {**IDLE, "http://new:8000": 0}
    moved = [key for key in KEYS if choose(key, IDLE, Bound()) != choose(key, more, Bound())]
    assert {choose(key, more, Bound()) for key in moved} == {"http://new:8000"}
    assert 0.8 < len(moved) / (len(KEYS) / 9) < 1.2


@given(
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 100), min_size=1),
    st.text(),
    st.floats(1, 4),
    st.integers(1, 8),
)
def test_no_replica_takes_much_more_than_its_share(
    active: dict[str, int], key: str, factor: float, free: int
) -> None:
    bound = Bound(factor, free)
    chosen = choose(key, active, bound)
    mean = (sum(active.values()) + 1) / len(active)
    assert active[chosen] + 1 <= max(free, factor * mean + 1)


def test_a_hot_key_is_spread_in_a_fixed_order() -> None:
    active = dict(IDLE)
    homes = []
    for _ in range(64):
        homes.append(choose("hot", active, Bound(1.25, 4)))
        active[homes[-1]] += 1
    assert len(set(homes[:4])) == 1
    assert len(set(homes)) > 4
    assert max(active.values()) <= 11


def test_requests_that_belong_nowhere_go_where_there_are_fewest() -> None:
    active = {**dict.fromkeys(NAMES, 3), NAMES[5]: 2}
    assert choose(None, active, Bound()) == NAMES[5]


TURN = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Who built it?"},
]
LATER = [*TURN, {"role": "assistant", "content": "Skarvik."}, {"role": "user", "content": "When?"}]


def test_all_turns_of_a_conversation_have_one_key() -> None:
    key = conversation_key({"messages": TURN})
    assert key == conversation_key({"messages": LATER, "temperature": 0})
    assert key != conversation_key({"messages": LATER[1:]})
    assert key != conversation_key({"messages": TURN, "cache_salt": "a"})
    named = conversation_key({"messages": TURN, "prompt_cache_key": "a"})
    assert named == conversation_key({"messages": LATER[2:], "prompt_cache_key": "a"})
    assert conversation_key({}, "a") == named


def test_a_prompt_that_grows_keeps_its_key() -> None:
    text = "The lighthouse of Skarvik. " * 50
    assert conversation_key({"prompt": text}) == conversation_key({"prompt": text + "It"})
    assert conversation_key({"prompt": [text]}) == conversation_key({"prompt": text})
    ids = list(range(300))
    assert conversation_key({"prompt": ids}) == conversation_key({"prompt": [[*ids, 1]]})
    assert conversation_key({"input": text}) == conversation_key({"prompt": text})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "cache_salt", "input"]), _JSON))
def test_whatever_is_sent_has_a_key_or_none(body: dict[str, object]) -> None:
    key = conversation_key(body)
    assert key is None or isinstance(key, str)
    assert choose(key, IDLE, Bound()) in NAMES
