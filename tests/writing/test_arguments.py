"""Settings by name, beside `Settings`, in every call that writes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashback.engines.local import LocalEngine
from flashback.errors import SettingsError
from flashback.settings import RetrievalSettings, SamplingSettings, Settings, StoppingSettings
from flashback.writing.arguments import changed
from flashback.writing.generator import Generator
from tiny_readers import tiny_reader

WANTED: dict[str, Any] = {
    "pattern": "none",
    "stride": 4,
    "temperature": 0.7,
    "seed": 3,
    "max_new_tokens": 6,
    "stop": ("zz",),
    "truncate": True,
}
SETTINGS = Settings(
    RetrievalSettings("none", stride=4),
    SamplingSettings(temperature=0.7, seed=3),
    StoppingSettings(max_new_tokens=6, stop=("zz",)),
    truncate=True,
)


def writer() -> Generator:
    reader = tiny_reader()
    return Generator(reader, LocalEngine(reader.model, reader.window, self_check=False), None)


def test_names_at_every_depth_make_the_settings() -> None:
    assert changed(None, WANTED) == SETTINGS
    assert changed(None, {}) == Settings()
    assert changed(SETTINGS, {}) == SETTINGS


@given(names=st.sets(st.sampled_from(sorted(WANTED))))
def test_what_is_not_named_stays(names: set[str]) -> None:
    """Some by settings, the rest by name."""
    rest = {name: value for name, value in WANTED.items() if name not in names}
    assert changed(changed(None, rest), {name: WANTED[name] for name in names}) == SETTINGS


def test_whole_parts_can_be_given_and_changed_at_once() -> None:
    found = changed(None, {"sampling": SamplingSettings(seed=5), "temperature": 0.5})
    assert found.sampling == SamplingSettings(temperature=0.5, seed=5)


@pytest.mark.parametrize("stop", ["end", ["end"], ("end",)])
def test_texts_may_be_one_text_or_a_list(stop: Any) -> None:
    assert changed(None, {"stop": stop}).stopping.stop == ("end",)


def test_every_field_of_every_part_has_a_name_of_its_own() -> None:
    kinds = (Settings, RetrievalSettings, SamplingSettings, StoppingSettings)
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_tokens": 3}, "max_tokens: no such setting; did you mean max_new_tokens?"),
        ({"Temperature": 3}, "Temperature: no such setting; did you mean temperature?"),
        ({"qqq": 3}, "qqq: no such setting; expected one of cache_salt, forbid_documents, "),
        ({"max_new_tokens": "3"}, "max_new_tokens='3': expected a whole number"),
        ({"pattern": "middle"}, "pattern='middle': expected one of auto, none"),
        ({"temperature": "warm"}, "temperature='warm': expected a number"),
        ({"stop": 3}, "stop=3: expected a tuple of texts"),
        ({"frame": "x"}, "frame='x': expected FrameText or None"),
        ({"retrieval": "x"}, "retrieval='x': expected RetrievalSettings"),
    ],
)
def test_wrong_ones_are_told_in_one_line(wrong: dict[str, Any], message: str) -> None:
    one: Any = writer()
    chat = [{"role": "user", "content": "x"}]
    calls: tuple[Callable[[], object], ...] = (
        lambda: one.generate("x", **wrong),
        lambda: one.generate(["x"], **wrong),
        lambda: one.stream("x", **wrong),
        lambda: one.chat(chat, **wrong),
        lambda: one.stream_batch(["x"], **wrong),
    )
    for write in calls:
        with pytest.raises(SettingsError) as found:
            write()
        assert str(found.value).startswith(message)
        assert "\n" not in str(found.value)


def test_a_call_writes_what_settings_write() -> None:
    expected = writer().generate("once", SETTINGS)
    assert writer().generate("once", **WANTED).tokens == expected.tokens
    events = writer().stream("once", **WANTED)
    assert events.finish().tokens == expected.tokens
    assert writer().generate("once", SETTINGS, max_new_tokens=2).tokens == expected.tokens[:2]


@pytest.mark.parametrize("prompts", [["once", "twice"], [[0, 5, 6], [0, 7]]])
def test_a_list_of_prompts_writes_them_all(prompts: Any) -> None:
    found = writer().generate(prompts, **WANTED)
    alone = [writer().generate(prompt, **WANTED).tokens for prompt in prompts]
    assert [one.tokens for one in found] == alone
    assert [one.tokens for one in writer().generate(prompts, batch_size=1, **WANTED)] == alone


def test_token_ids_are_one_prompt() -> None:
    assert writer().generate([0, 5, 6], **WANTED).tokens
    assert writer().generate((0, 5, 6), **WANTED).tokens
