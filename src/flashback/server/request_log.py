"""The log record of a request that was scheduled."""

from typing import Any

from fastapi import Request

from flashback.server.answers import Answer
from flashback.server.checked_request import CheckedRequest, prompts_for_log


class RequestLog:
    """Collects what the log says of a request."""

    def __init__(
        self,
        request: Request,
        checked: CheckedRequest,
        user: str | None,
        answer: Answer,
        *,
        with_text: bool,
    ) -> None:
        self._state = request.scope.setdefault("state", {})
        self._checked = checked
        self._user = user
        self._answer = answer
        self._with_text = with_text

    def close(self) -> None:
        """Hand the record to the gate, which writes the line once the request is over."""
        answer = self._answer
        record: dict[str, Any] = {
            "pattern": self._checked.settings.retrieval.pattern,
            "choices": self._checked.choices,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "finish_reasons": answer.finish_reasons,
            **answer.totals,
        }
        if answer.events:
            record["events"] = [event["event"] for event in answer.events]
        if answer.error is not None:
            record["error"] = answer.error.error.code or answer.error.error.type
        if self._user is not None:
            record["user"] = self._user
        if self._with_text:
            record["prompts"] = prompts_for_log(self._checked.prompts)
            record["texts"] = answer.texts
        self._state["log"] = record
