"""Checks requests: fills in defaults, applies the server's limits, checks settings."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from flashback.errors import ChatTemplateError, SettingsError
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.readers.chat import Conversation
from flashback.server.checked_request import CheckedRequest
from flashback.server.errors import ApiError, of_settings
from flashback.server.schema import (
    ChatRequest,
    Common,
    CompletionRequest,
    ObjectFormat,
    RetrieveRequest,
    SchemaFormat,
)
from flashback.server.service import Service
from flashback.settings import (
    FrameText,
    RetrievalSettings,
    SamplingSettings,
    SearchOptions,
    Settings,
    StoppingSettings,
)

_COMPLETION_TOKENS = 16
"""OpenAI's default for completions."""
_CHAT_TOKENS = 256
_RETRIEVAL = {field.name for field in fields(RetrievalSettings)}


def checked_completion(request: CompletionRequest, service: Service) -> CheckedRequest:
    """A request to POST /v1/completions, checked.

    Raises:
        ApiError: a field is over the server's limits, contradicts another, or needs what this
            server does not have.
    """
    check_model(request.model, service)
    tokens = _COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    if tokens == 0 and not request.echo:
        raise ApiError(
            400, "max_tokens 0 gives no text; with echo and logprobs it scores the prompt",
            param="max_tokens",
        )  # fmt: skip
    checked = CheckedRequest(
        prompts=_prompts(request.prompt),
        settings=_settings(request, max(tokens, 1), service),
        n=request.n or 1,
        write=tokens > 0,
        echo=bool(request.echo),
        logprobs=request.logprobs,
        **_options(request),
    )
    return _within_limits(checked, service)


def checked_chat(request: ChatRequest, service: Service) -> CheckedRequest:
    """A request to POST /v1/chat/completions, checked.

    Raises:
        ApiError: see `checked_completion`.
    """
    check_model(request.model, service)
    if request.max_tokens and request.max_completion_tokens:
        raise ApiError(
            400, "give max_tokens or max_completion_tokens, not both", param="max_tokens"
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    tokens = request.max_completion_tokens or request.max_tokens or _CHAT_TOKENS
    checked = CheckedRequest(
        prompts=(_conversation(request, service),),
        settings=_settings(request, tokens, service),
        n=request.n or 1,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        **_options(request),
    )
    return _within_limits(checked, service)


def _conversation(request: ChatRequest, service: Service) -> Conversation:
    try:
        conversation = Conversation.of(one.shown for one in request.messages)
    except ChatTemplateError as error:
        raise of_settings(error, service.reader.name, service.model) from error
    return replace(conversation, special_tokens=service.settings.special_tokens_in_messages)


def search_options(request: RetrieveRequest, service: Service) -> SearchOptions:
    """The search options of a request to POST /v1/retrieve."""
    given = request.model_dump(exclude_none=True, exclude={"queries"})
    return _retrieval(given, service).search_options


def check_model(name: str, service: Service) -> None:
    """Refuse the name of another model.

    Raises:
        ApiError: the server has no model of that name.
    """
    if name != service.model:
        raise ApiError(
            404,
            f"the model {name!r} is not here; this server has {service.model!r}",
            "model_not_found",
            "model",
        )


def _prompts(prompt: Any) -> tuple[str | Ids, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt[0], int):
        return (tuple(prompt),)
    return tuple(one if isinstance(one, str) else tuple(one) for one in prompt)


def _options(request: Common) -> dict[str, Any]:
    """The fields of the `flashback` object that are no retrieval settings."""
    given = request.flashback
    if given is None:
        return {}
    return {"fresh_cache": given.fresh_cache, "first_boundary": given.first_boundary}


def _settings(request: Common, tokens: int, service: Service) -> Settings:
    given: dict[str, Any] = {} if request.flashback is None else request.flashback.model_dump()
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    try:
        return Settings(
            _retrieval(given, service),
            _sampling(request),
            StoppingSettings(
                tokens, tuple(stops), given.get("ignore_eos", False), _json_schema(request)
            ),
            given.get("truncate", False),
            request.cache_salt or "",
        )
    except SettingsError as error:
        raise of_settings(error, service.reader.name, service.model) from error


def _json_schema(request: Common) -> str:
    """The schema that the answer obeys; empty: none."""
    wanted = request.response_format
    if isinstance(wanted, SchemaFormat):
        return json.dumps(wanted.json_schema.schema_)
    return '{"type": "object"}' if isinstance(wanted, ObjectFormat) else ""


def _retrieval(given: dict[str, Any], service: Service) -> RetrievalSettings:
    """The server's defaults, changed by the request's values."""
    changed: dict[str, Any] = {
        name: _setting(value)
        for name, value in given.items()
        if name in _RETRIEVAL and value is not None
    }
    found = replace(service.defaults, **changed)
    found.check_retriever(service.retriever)
    service.reader.check_pattern(found.pattern)
    if given.get("frame"):
        _check_echo(given["frame"]["echo_tokens"], found.pattern)
    return found


def _check_echo(tokens: int | None, pattern: str) -> None:
    """Refuse an echo for a pattern that uses none, as the command line does."""
    if tokens and not PATTERNS[pattern].echoes:
        name = "flashback.frame.echo_tokens"
        message = f"{name} {tokens}: has no effect with pattern {pattern}; leave it out"
        raise ApiError(400, message, "invalid_value", name)


def _setting(value: Any) -> Any:
    """A value of a request as settings have it."""
    if isinstance(value, dict):
        return FrameText(**{name: one for name, one in value.items() if one is not None})
    return tuple(value) if isinstance(value, list) else value


def _sampling(request: Common) -> SamplingSettings:
    """OpenAI's defaults; without a seed, a new one is drawn."""
    seed = secrets.randbits(32) if request.seed is None else request.seed % (1 << 64)
    chosen: dict[str, Any] = {"seed": seed}
    if request.repetition_penalty is not None:
        chosen["repetition_penalty"] = request.repetition_penalty
    temperature = 1.0 if request.temperature is None else request.temperature
    if SamplingSettings(temperature).greedy:  # of the most probable tokens the first is the same
        return SamplingSettings(**chosen)
    for name in ("top_p", "top_k", "min_p"):
        if (value := getattr(request, name)) is not None:
            chosen[name] = value
    return SamplingSettings(temperature=temperature, **chosen)


def _within_limits(checked: CheckedRequest, service: Service) -> CheckedRequest:
    """Refuse more than the server's limits, and what its engine or reader cannot do.

    Raises:
        ApiError: too many choices or tokens; fresh caches or scored prompts where the engine or
            the reader has none.
    """
    limits = service.settings
    if checked.choices > limits.max_choices:
        raise ApiError(
            400,
            f"{checked.choices} choices (prompts times n); expected at most {limits.max_choices}",
            param="n" if checked.n > 1 else "prompt",
        )
    tokens = checked.settings.stopping.max_new_tokens
    if tokens > limits.max_tokens:
        raise ApiError(
            400,
            f"max_tokens {tokens}: expected at most {limits.max_tokens}",
            param="max_tokens",
        )
    if checked.scores_prompt and checked.n > 1:
        raise ApiError(400, "n: a prompt is scored once; expected 1 with echo and logprobs",
                       param="n")  # fmt: skip
    _check_abilities(checked, service)
    return checked


def _check_abilities(checked: CheckedRequest, service: Service) -> None:
    if checked.scores_prompt and service.scoring_reader is None:
        raise ApiError(
            400,
            "echo with logprobs: this server's model runs elsewhere and gives no log-probabilities "
            "of prompts; leave out one of them",
            "unsupported_field",
            "echo",
        )
    if checked.fresh_cache and service.caching_engine is None:
        raise ApiError(
            400,
            "flashback.fresh_cache: this server's engine keeps its caches elsewhere and cannot "
            "start with empty ones; leave it out",
            "unsupported_field",
            "flashback.fresh_cache",
        )


def check_unicode(value: Any, path: Sequence[str | int] = ()) -> None:
    """Refuse half characters, which JSON can spell and no tokenizer takes.

    Raises:
        ApiError: naming the field.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            where = ".".join(map(str, path))
            raise ApiError(
                400, f"{where}: half of a surrogate pair; expected Unicode text", param=where
            ) from None
    elif isinstance(value, dict):
        for key, one in value.items():
            check_unicode(one, (*path, str(key)))
    elif isinstance(value, list) and value and not isinstance(value[0], int):
        for at, one in enumerate(value):
            check_unicode(one, (*path, at))
