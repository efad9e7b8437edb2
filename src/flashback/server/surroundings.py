"""What stands around the routes of every application: the gate, other origins, the playground."""

from importlib.resources import files

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from prometheus_client import Counter

from flashback.server.errors import of_status
from flashback.server.gate import Gate
from flashback.server.server_settings import ServerSettings

_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
}


def add_gate(app: FastAPI, settings: ServerSettings, requests: Counter) -> None:
    """Limits, key and log around all routes; other origins as the settings allow."""
    app.add_middleware(
        Gate, requests=requests, api_key=settings.api_key, max_bytes=settings.max_body * 1024
    )
    if settings.cors_origins:  # around the gate: a page reads its refusals, too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients differ in what they send
            expose_headers=["Retry-After", "X-Request-Id"],
        )


def add_page(app: FastAPI) -> None:
    """The playground's routes."""
    folder = files("flashback.server") / "playground"
    texts = {name: (folder / name).read_bytes() for name in _PAGE}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The playground."""
        return Response(texts["index.html"], media_type=_PAGE["index.html"])

    @app.get("/playground/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        """The playground's script and style."""
        if name not in texts:
            raise of_status(404, "")
        return Response(texts[name], media_type=_PAGE[name])
