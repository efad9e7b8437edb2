"""--engine and what belongs to it: what runs the model, as one value."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from flashback.cli.options import options_of, take
from flashback.engines.openai_settings import RemoteSettings

Command = Callable[..., Any]

_HELP = (
    "What runs the model: local: this process. llama.cpp: the same process, by llama.cpp, for GGUF "
    "files. openai: the OpenAI-compatible server at --base-url, such as vLLM, which has it as "
    "--model (docs/engines.md)."
)


@dataclass(frozen=True)
class EngineOptions:
    """The options of a command that choose its engine."""

    name: str
    remote: RemoteSettings

    @property
    def is_local(self) -> bool:
        """Whether the model is loaded in this process, by transformers."""
        return self.name == "local"

    @property
    def arguments(self) -> dict[str, Any]:
        """As `load` takes them."""
        return {"engine": self.name, "remote": self.remote}


def engine_options(command: Command) -> Command:
    """All of them, given as `engine`."""

    @functools.wraps(command)
    def run(engine: str, **values: Any) -> Any:
        remote = take(RemoteSettings, values)
        if engine != "openai" and remote != RemoteSettings():
            raise click.UsageError(
                "--base-url, --tokenizer, --api-key-env and --token-limit are of --engine openai"
            )
        return command(engine=EngineOptions(engine, remote), **values)

    given: Command = options_of(RemoteSettings)(run)
    return click.option("--engine", default="local", show_default=True, help=_HELP)(given)
