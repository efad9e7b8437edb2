"""What is written obeys a JSON schema, whatever the reader, the pattern and the seed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_line import refused, run
from flashback.engines.local import LocalEngine
from flashback.engines.openai_body import body_of
from flashback.engines.protocol import Capabilities, Completion
from flashback.errors import SettingsError
from flashback.patterns.prompt import Prompt
from flashback.retrieval.protocol import Hit
from flashback.sampling import Sampler
from flashback.settings import RetrievalSettings, SearchOptions
from flashback.writing import structured
from flashback.writing.generator import Generator
from tiny_readers import tiny_reader

CITY = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Bern", "Basel"]},
        "large": {"type": "boolean"},
        "people": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["name", "large", "people"],
    "additionalProperties": False,
}
PATTERNS = ("none", "append", "prepend", "slot")


class Passages:
    """A passage for every query, another one for every other."""

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [
            [Hit(str(len(query)), "d", "Cities", f"Bern has {len(query)} bridges.", 1.0)]
            for query in queries
        ]


@cache
def generator() -> Generator:
    reader = tiny_reader(window=512)
    return Generator(reader, LocalEngine(reader.model, reader.window), Passages())


def written(schema: Any, **named: Any) -> Any:
    retrieval = RetrievalSettings(pattern=named.pop("pattern", "none"), stride=4)
    found = generator().generate(
        "A city:", retrieval=retrieval, json_schema=json.dumps(schema), max_new_tokens=96, **named
    )
    assert found.finish_reason == "eos"
    return json.loads(found.text)


def check_city(city: Any) -> None:
    assert set(city) == {"name", "large", "people"}
    assert city["name"] in ("Bern", "Basel")
    assert isinstance(city["large"], bool)
    assert 0 <= city["people"] <= 999


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_schema_is_obeyed_across_strides(pattern: str) -> None:
    check_city(written(CITY, pattern=pattern))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_whatever_is_drawn(seed: int) -> None:
    check_city(written(CITY, temperature=2.0, seed=seed))


TYPES = {
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
}


@settings(max_examples=15, deadline=None)
@given(
    kinds=st.dictionaries(
        st.text("abcdefgh", min_size=1, max_size=5), st.sampled_from(sorted(TYPES)), max_size=3
    ),
    seed=st.integers(0, 99),
)
def test_made_up_schemas_are_obeyed(kinds: dict[str, str], seed: int) -> None:
    bounds = {"integer": {"minimum": -99, "maximum": 99}}
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} | bounds.get(kind, {}) for name, kind in kinds.items()},
        "required": list(kinds),
        "additionalProperties": False,
    }
    found = written(schema, temperature=1.5, seed=seed)
    assert set(found) == set(kinds)
    assert all(isinstance(found[name], TYPES[kind]) for name, kind in kinds.items())


def test_texts_of_a_batch_have_constraints_of_their_own() -> None:
    prompts = ["A city:", "Another city, which is far away:", "One:"]
    named: dict[str, Any] = {
        "json_schema": json.dumps(CITY),
        "max_new_tokens": 64,
        "pattern": "none",
    }
    alone = [generator().generate(prompt, **named).tokens for prompt in prompts]
    together = generator().generate_batch(prompts, **named)
    assert [one.tokens for one in together] == alone
    for one in together:
        check_city(json.loads(one.text))


def test_tokens_that_may_come_next_are_chosen_as_ever() -> None:
    """A schema that allows all objects changes nothing of a text that is one."""
    schema = json.dumps({"const": {"a": 1}})
    found = generator().generate("A city:", pattern="none", json_schema=schema, max_new_tokens=64)
    assert json.loads(found.text) == {"a": 1}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "expected a JSON schema"),
        ("[]", "list; expected a JSON schema, an object"),
        ('{"type": "nonsense"}', "expected a JSON schema that can be followed"),
        ('{"a": "' + "x" * structured.LONGEST_SCHEMA + '"}', "expected at most 65,536"),
    ],
)
def test_schemas_that_cannot_be_followed(schema: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        generator().generate("A city:", pattern="none", json_schema=schema)
    with pytest.raises(SettingsError, match=message):
        generator().check("A city:", replace_schema(schema))


def replace_schema(schema: str) -> Any:
    from flashback.settings import Settings, StoppingSettings

    return replace(
        Settings(RetrievalSettings(pattern="none")), stopping=StoppingSettings(json_schema=schema)
    )


def test_a_text_without_an_end_cannot_be_complete() -> None:
    with pytest.raises(SettingsError, match="without ignore_eos"):
        generator().generate(
            "A city:", pattern="none", json_schema=json.dumps(CITY), ignore_eos=True
        )


def test_without_llguidance_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(
        SettingsError, match="needs llguidance; install FlashBack with the extra structured"
    ):
        generator().generate("A city:", pattern="none", json_schema="{}")


def test_the_command_line_takes_a_schema_or_a_file(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(CITY))
    words: tuple[str | Path, ...] = (
        "generate",
        "A city:",
        "--model",
        model_folder,
        "--pattern",
        "none",
    )
    words = (*words, "--max-new-tokens", "80", "--json")
    for schema in (path, json.dumps(CITY)):
        check_city(json.loads(run(*words, "--json-schema", schema).record["text"]))
    message = refused(*words, "--json-schema", tmp_path / "none.json", code=2)
    assert "expected a file with a JSON schema, or the schema itself" in message


class Elsewhere:
    """An engine that chooses tokens where no logits are."""

    capabilities = Capabilities(512, slot=False, chooses_here=False)

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        body = body_of("a", prompt.ids, max_tokens, sampler)
        assert body["response_format"]["json_schema"]["schema"] == CITY

        def tokens() -> Iterator[int]:
            for token in (*generator().reader.encode('{"name": "Bern"}'), 1):
                sampler.accept(token)
                yield token

        return Completion(tokens())


def test_an_engine_that_chooses_elsewhere_is_told_of_the_schema() -> None:
    writer = Generator(generator().reader, Elsewhere(), None)
    named: dict[str, Any] = {"pattern": "none", "json_schema": json.dumps(CITY)}
    found = writer.generate("A city:", stride=64, max_new_tokens=64, **named)
    assert (found.text, found.finish_reason) == ('{"name": "Bern"}', "eos")
    with pytest.raises(SettingsError, match="a stride of at least 64"):
        writer.generate("A city:", stride=16, max_new_tokens=64, **named)
