"""Errors as OpenAI's clients expect them: a status, and an object that says what is wrong."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from flashback.errors import ChatTemplateError, FlashBackError, NoChatTemplate, PromptTooLong

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}

_FIELDS = {"json_schema": "response_format"}
"""The API's names of settings that have other ones."""


ENGINE_FAILED = "the engine behind this server failed; try again in a moment"


@dataclass(eq=False)
class ApiError(Exception):
    """A request that is refused, or cannot be finished."""

    status: int
    message: str
    """For the client: no paths, no traceback."""
    code: str | None = None
    """A name of the error for programs."""
    param: str | None = None
    """The field that is wrong."""
    retry_after: int | None = None
    """Seconds after which it may be worth another try."""

    @property
    def type(self) -> str:
        """OpenAI's kind of error."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        return _TYPES.get(self.status, fallback)

    @property
    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def of_settings(error: FlashBackError, reader: str, model: str) -> ApiError:
    """A setting or prompt that was refused, with the API's names of fields.

    Args:
        reader: the reader's name, which may be a path.
        model: its name in the API.
    """
    param, named = error.argument, str(error).replace(reader, model)
    if isinstance(error, PromptTooLong):
        return ApiError(400, named, "context_length_exceeded", "prompt")
    if isinstance(error, NoChatTemplate):
        return ApiError(400, f"{named}, or use /v1/completions", "no_chat_template")
    if isinstance(error, ChatTemplateError):
        return ApiError(400, named, param="messages")
    return ApiError(400, named, "invalid_value", _FIELDS.get(param or "", param))


def internal() -> ApiError:
    """A failure of the server; the log has the traceback."""
    return ApiError(500, "the server failed on this request; its log says how", "internal_error")


def of_engine() -> ApiError:
    """The server that runs the model failed; the log says how."""
    return ApiError(503, ENGINE_FAILED, "engine_error", retry_after=5)


def stopping() -> ApiError:
    """The server is shutting down."""
    return ApiError(
        503, "the server is shutting down; try again in a moment", "shutting_down", retry_after=5
    )


def of_status(status: int, detail: object) -> ApiError:
    """An error of the framework, such as an unknown path or method."""
    known = {404: "there is no such path", 405: "the path does not take this method"}
    return ApiError(status, known.get(status, str(detail) or HTTPStatus(status).phrase))
