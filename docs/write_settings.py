"""Write docs/settings.md from the settings classes."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashback.corpus.formats.file_settings import FileSettings
from flashback.declared import CheckedSettings, choices_of, flag_of
from flashback.engines.openai_settings import RemoteSettings
from flashback.retrieval.bm25 import IndexSettings
from flashback.retrieval.fusion import FusionSettings
from flashback.retrieval.index_settings import DenseSettings
from flashback.retrieval.rerank import RerankSettings
from flashback.settings import RetrievalSettings, SamplingSettings, Settings, StoppingSettings

PAGE = Path(__file__).parent / "settings.md"
_INTRODUCTION = """# Settings

Written by `make docs` from the settings classes; a test keeps it current. In Python the name of a
setting is a keyword of [`generate`](api.md#writing); on the command line it has the flag beside it.
A value out of its range is refused, never changed.
"""
_HEAD = "| setting | flag | default | range | meaning |\n|---|---|---|---|---|"
_CLASSES = (
    *(RetrievalSettings, SamplingSettings, StoppingSettings, Settings, FileSettings),
    *(IndexSettings, DenseSettings, FusionSettings, RerankSettings, RemoteSettings),
)
_LARGE = 1 << 16
"""A limit from here on only keeps nonsense out."""


def render() -> str:
    """The page as it should be."""
    return "\n".join([_INTRODUCTION, *map(_section, _CLASSES)])


def _section(kind: type[CheckedSettings]) -> str:
    meaning = (kind.__doc__ or "").partition("\n")[0]
    return "\n".join([f"## {kind.__name__}\n", f"{meaning}\n", _HEAD, *_rows(kind), ""])


def _rows(kind: type[CheckedSettings]) -> Iterator[str]:
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.metadata:
            cells = (f"`{field.name}`", f"`{flag_of(field)}`", _default(field), _range(field))
            yield f"| {' | '.join(cells)} | {field.metadata['help']} |"


def _default(field: "dataclasses.Field[Any]") -> str:
    return "none" if field.default == () else f"`{field.default}`"


def _range(field: "dataclasses.Field[Any]") -> str:
    low, high = field.metadata["low"], field.metadata["high"]
    if low is not None:
        return f"{low:g} or more" if high > _LARGE else f"{low:g} to {high:g}"
    return ", ".join(f"`{name}`" for name in choices_of(field))


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
