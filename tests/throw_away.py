"""What a newcomer adds: a pattern, an index kind and an engine, each one class and one line."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flashback.declared import Registry
from flashback.engines.protocol import Capabilities, Completion, Usage
from flashback.loading import LoadOptions
from flashback.patterns.cost import StrideShape
from flashback.patterns.pattern import Boundary, ContextPattern
from flashback.patterns.prompt import Prompt
from flashback.readers.text_reader import TextReader
from flashback.retrieval.index_folder import Content, Manifest, new_version, publish, read_manifest
from flashback.retrieval.protocol import Hit
from flashback.sampling import Sampler
from flashback.settings import SearchOptions
from tiny_readers import byte_tokenizer


@contextlib.contextmanager
def registered(registry: Registry[Any], name: str, item: Any) -> Iterator[None]:
    """Register for a test, and take it out again."""
    registry.register(name, item)
    try:
        yield
    finally:
        del registry[name]


class Middle(ContextPattern):
    """A pattern: passages in the middle of the context."""

    name = "middle"
    title = "middle"
    place = "in the middle of the text"
    summary = "passages in the middle of the text"

    def arrange(self, at: Boundary) -> Prompt:
        """The first half of the context, the passage, the rest."""
        half = max(len(at.context) // 2, at.bos)
        return Prompt.plain(at.context[:half] + at.framed + at.context[half:])

    def boundary_tokens(self, stride: StrideShape) -> int:
        """From the passage on."""
        return stride.context - stride.context // 2 + stride.passage


class WordIndex:
    """An index kind: passages in a JSON file, scored by the words they share with a query."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        file = folder / self.manifest.data / "passages.json"
        self._passages: list[str] = json.loads(file.read_text("utf-8"))

    def __len__(self) -> int:
        return len(self._passages)

    def sample(self) -> list[str]:
        return self._passages

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [self._one(set(query.lower().split()), options) for query in queries]

    def _one(self, words: set[str], options: SearchOptions) -> list[Hit]:
        hits = [
            Hit(str(at), str(at), "", text, float(len(words & set(text.lower().split()))))
            for at, text in enumerate(self._passages)
        ]
        found = sorted((hit for hit in hits if hit.score), key=lambda hit: -hit.score)
        return found[: options.k]


def write_word_index(folder: Path, passages: Sequence[str]) -> None:
    """Make a folder of the kind `words`."""
    with new_version(folder, overwrite=False) as data:
        (data / "passages.json").write_text(json.dumps(passages), "utf-8")
        counts = {"documents": len(passages), "passages": len(passages)}
        publish(folder, data, Content("words", counts, {}, {}))


class Parrot:
    """An engine that runs no model here: it repeats the prompt's last tokens."""

    capabilities = Capabilities(window=192, slot=False)

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        usage = Usage(reused=0)
        return Completion(self._tokens(prompt, max_tokens, sampler, usage), usage)

    def _tokens(
        self, prompt: Prompt, max_tokens: int, sampler: Sampler, usage: Usage
    ) -> Iterator[int]:
        allowed = [token for token in prompt.ids[-4:] if token not in sampler.forbidden]
        for at in range(max_tokens):
            token = allowed[at % len(allowed)]
            sampler.accept(token)
            yield token


def open_parrot(options: LoadOptions) -> tuple[TextReader, Parrot]:
    """A reader without a model, and the engine."""
    reader = TextReader(
        name=options.model, tokenizer=byte_tokenizer(), window=192, window_reason="a test"
    )
    return reader, Parrot()
