"""`flashback serve --replica`: a front, before servers that have the model."""

import dataclasses
import socket
from collections.abc import Iterator

import click
from click.core import ParameterSource

from flashback.cli.console import notes
from flashback.errors import FlashBackError
from flashback.server.front_settings import FrontSettings
from flashback.server.server_settings import ServerSettings

_OWN = {field.name for field in dataclasses.fields(FrontSettings)}
_SHARED = {"host", "port", "api_key", "cors_origins", "max_body", "grace"}
"""Options that a front has in common with a server of its own model."""


def serves_replicas(front: FrontSettings, settings: ServerSettings) -> bool:
    """Whether replicas were asked for; they have then been served until a signal.

    Raises:
        click.UsageError: see `_check`.
        FlashBackError: an extra is missing, or see `bind`.
    """
    _check(front)
    if not front.replicas:
        return False
    _check_installed()
    from flashback.server.front import serve_front
    from flashback.server.sockets import bind

    bound = bind(settings)
    notes.print(f"in front of {', '.join(front.replicas)}", style="dim")
    notes.print(serving_at(bound))
    serve_front(front, settings, bound)
    return True


def _check(front: FrontSettings) -> None:
    """Refuse options of a model with `--replica`, and those of a front without.

    Raises:
        click.UsageError: one is given.
    """
    given = dict(_given())
    if front.replicas:
        if wrong := [flag for name, flag in given.items() if name not in _OWN | _SHARED]:
            raise click.UsageError(
                f"{', '.join(wrong)}: not with --replica; give it to the replicas, which have the "
                "model and the index"
            )
    elif wrong := [flag for name, flag in given.items() if name in _OWN]:
        raise click.UsageError(f"{', '.join(wrong)}: only with --replica")


def _given() -> Iterator[tuple[str, str]]:
    """The names and flags of the options on the command line."""
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source == ParameterSource.COMMANDLINE:
            yield str(parameter.name), max(parameter.opts, key=len)


def serving_at(bound: socket.socket) -> str:
    """Where a server listens, for its user."""
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"serving at http://{shown}:{port} (Ctrl-C stops)"


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import httpx2  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise FlashBackError(
            f"--replica needs {error.name}; install FlashBack with the extras serve and remote: "
            "pip install '.[serve,remote]' in a clone of the project"
        ) from None
