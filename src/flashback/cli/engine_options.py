"""--engine: what runs the model, as one value."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

Command = Callable[..., Any]

_HELP = (
    "What runs the model: local: this process. llama.cpp: the same process, by llama.cpp, for GGUF "
    "files (docs/engines.md)."
)


@dataclass(frozen=True)
class EngineOptions:
    """The options of a command that choose its engine."""

    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """As `load` takes them."""
        return {"engine": self.name}


def engine_options(command: Command) -> Command:
    """All of them, given as `engine`."""

    @functools.wraps(command)
    def run(engine: str, **values: Any) -> Any:
        return command(engine=EngineOptions(engine), **values)

    return click.option("--engine", default="local", show_default=True, help=_HELP)(run)
