"""`flashback serve`."""

import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.console import notes
from flashback.cli.engine_options import engine_options
from flashback.cli.frame_options import FrameOptions, frame_options
from flashback.cli.front import serves_replicas, serving_at
from flashback.cli.options import options_of, take
from flashback.cli.patterns import as_trained, check_echo
from flashback.cli.reader_options import (
    ReaderOptions,
    adapter_option,
    reader_options,
    weights_option,
)
from flashback.cli.retriever_options import Source, source_arguments, source_options
from flashback.declared import AUTO
from flashback.errors import FlashBackError
from flashback.readers.weight_settings import Weights
from flashback.server.front_settings import FrontSettings
from flashback.server.server_settings import MIB, ServerSettings
from flashback.settings import RetrievalSettings

if TYPE_CHECKING:
    from flashback.writing.generator import Generator

_KEY = "FLASHBACK_API_KEY"


@click.command(short_help="Serve an OpenAI-compatible API and a playground.")
@source_options
@adapter_option
@reader_options
@engine_options
@weights_option
@options_of(RetrievalSettings)
@frame_options
@options_of(ServerSettings)
@options_of(FrontSettings)
def serve(
    index: Source | None,
    adapter: str | None,
    options: ReaderOptions,
    weights: Weights,
    frame: FrameOptions,
    **values: Any,
) -> None:
    """Serve one model and one index to OpenAI's clients, with sources (docs/server.md).

    \b
    flashback serve --index IDX
    flashback serve --index IDX --model Qwen/Qwen3-0.6B --port 9000 --pattern slot
    FLASHBACK_API_KEY=secret flashback serve --index IDX --host 0.0.0.0
    flashback serve --replica http://host-a:8000 --replica http://host-b:8000

    Then open http://127.0.0.1:8000, or point a client at http://127.0.0.1:8000/v1. The retrieval
    settings are defaults, which a request can change. With --replica, no model is loaded: requests
    go to the servers named, each conversation to the one that has it cached (docs/scaling.md).
    """
    settings = _with_key(take(ServerSettings, values))
    if serves_replicas(take(FrontSettings, values), settings):
        return
    defaults = as_trained(take(RetrievalSettings, values, frame=frame.text), adapter)
    _check(defaults, frame, index)  # before a model is loaded, or even downloaded

    from flashback.cli.quiet import begin_loading

    begin_loading(options.model)
    from flashback.loading import load
    from flashback.retrieval.live import live
    from flashback.server.sockets import bind

    bound = bind(settings)  # before a model is loaded
    generator = load(
        options.model,
        **source_arguments(index),
        adapter=adapter,
        pattern=defaults.pattern,
        weights=weights,
        memory_bytes=settings.memory * MIB,
        passage_tokens=defaults.passage_tokens,
        **values["engine"].arguments,
        **options.placed,
    )
    if generator.retriever is not None:
        generator.retriever = live(generator.retriever)
    _serve(generator, settings, defaults, bound)


def _check(defaults: RetrievalSettings, frame: FrameOptions, index: Source | None) -> None:
    """Refuse what no request could be answered with."""
    if defaults.pattern != AUTO:
        check_echo(frame.echo_tokens or 0, defaults.pattern)
    defaults.check_lookahead()
    defaults.check_retriever(index)
    _check_installed()


def _with_key(settings: ServerSettings) -> ServerSettings:
    key = settings.api_key or os.environ.get(_KEY, "")
    return replace(settings, api_key=key)


def _serve(
    generator: "Generator",
    settings: ServerSettings,
    defaults: RetrievalSettings,
    bound: socket.socket,
) -> None:
    """Say where the server is, and serve until a signal."""
    from flashback.server.service import make_service
    from flashback.server.serving import serve as run

    service = make_service(generator, settings, defaults)
    notes.print(
        f"{service.model}, pattern {service.defaults.pattern}: {generator.reader.runs_on}",
        style="dim",
    )
    notes.print(serving_at(bound))
    run(service, bound)


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise FlashBackError(
            f"serving needs {error.name}; install FlashBack with the extra serve: "
            "pip install '.[serve]' in a clone of the project"
        ) from None
