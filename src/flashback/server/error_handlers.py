"""Errors of the framework and of validation, as OpenAI's error objects."""

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from flashback.server.errors import ApiError, of_status


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error with OpenAI's error object."""

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body(), error.status, error.headers)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return JSONResponse(of_validation(error).body(), 400)

    async def unknown(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        found = of_status(error.status_code, error.detail)
        return JSONResponse(found.body(), found.status, error.headers)

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unknown)


_SEVERAL_TYPES = {
    "prompt": "a text, a list of texts, a list of token ids (from 0 on), or a list of such lists; "
    "lists not empty",
    "stop": "a text of 1 to 256 characters, or up to 16 of them",
}
"""What a request's fields of several types accept."""
_CONTENT = "a text, or a list of {'type': 'text', 'text': ...}"
"""What the content of a message accepts."""


def of_validation(error: RequestValidationError) -> ApiError:
    """The first field of a request that is wrong, by its name."""
    for problem in error.errors():
        if problem["type"] == "literal_error" and _is_content(problem["loc"]):
            return _refused_part(problem["loc"], problem["input"])
    problem = error.errors()[0]
    kind = problem["type"]
    if kind == "json_invalid":
        return ApiError(400, "the body is not JSON", "invalid_json")
    where = [str(part) for part in problem["loc"] if part != "body"]
    name = where[0] if where else None
    if kind == "extra_forbidden":
        name = ".".join(where)
        return ApiError(
            400, f"the field {name!r} is not supported; leave it out", "unsupported_field", name
        )
    if not where:
        return ApiError(400, "expected a JSON object with Content-Type application/json")
    if where[0] in _SEVERAL_TYPES:  # of which pydantic names one, and says that it is not that
        return ApiError(400, f"{name}: expected {_SEVERAL_TYPES[where[0]]}", "invalid_value", name)
    if _is_content(problem["loc"]):
        name = ".".join(where[:3])
        return ApiError(400, f"{name}: expected {_CONTENT}", "invalid_value", name)
    if problem["loc"][-1] in where and name in ("flashback", "stream_options", "messages"):
        name = ".".join(where)
    return ApiError(400, f"{name}: {problem['msg'].lower()}", "invalid_value", name)


def _is_content(where: Sequence[str | int]) -> bool:
    """Whether a place in a request is the content of a message, or inside it."""
    return len(where) > 3 and (where[1], where[3]) == ("messages", "content")


def _refused_part(where: Sequence[str | int], kind: object) -> ApiError:
    """A part of a message's content that is no text, by its kind."""
    _, messages, at, content, *_, part, _ = where
    name = f"{messages}.{at}.{content}.{part}"
    return ApiError(
        400,
        f"{name}: a part of type {kind!r}; expected {{'type': 'text', 'text': ...}}",
        "unsupported_field",
        name,
    )
