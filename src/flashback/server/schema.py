"""The requests, as JSON schemas: unknown fields are refused by name, known ones checked.

OpenAI's fields that this server does not support accept only values that change nothing (null, 0,
an empty list; `auto`, where there is nothing to choose from); any other value is refused.
"""

import dataclasses
from typing import Annotated, Any, Literal, Optional

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    create_model,
    field_validator,
)
from pydantic_core import PydanticCustomError

from flashback.declared import choices_of
from flashback.patterns.registry import PATTERNS
from flashback.server.checked_request import FIRST_BOUNDARY
from flashback.settings import RetrievalSettings, SamplingSettings

MOST_LOGPROBS = 20
_LONGEST_STOP = 256


class Strict(BaseModel):
    """No coercion, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


Token = Annotated[int, Field(ge=0, lt=1 << 31)]


_DESCRIBED = {"pattern": "Where passages stand; none: nothing is retrieved."}
"""Fields that have no `auto` in a request: it is decided when the server starts."""


def _known_pattern(name: object) -> object:
    """The name of a registered pattern; anything else is refused with the names."""
    if name not in list(PATTERNS):
        *others, last = map(repr, PATTERNS)
        expected = f"{', '.join(others)} or {last}"
        raise PydanticCustomError("literal_error", "Input should be {names}", {"names": expected})
    return name


def _json_type(field: "dataclasses.Field[Any]") -> Any:
    """A declared setting's type and range, for a schema."""
    if field.name == "pattern":
        return Annotated[
            str,
            BeforeValidator(_known_pattern),
            Field(json_schema_extra=lambda schema: schema.update(enum=list(PATTERNS))),
        ]
    if isinstance(field.default, tuple):
        return Annotated[list[str], Field(max_length=1000)]
    if names := choices_of(field):
        return Literal[tuple(names)]
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if low is None:
        return field.type
    return Annotated[field.type, Field(ge=low, le=high)]


def _optional(settings: type, *names: str) -> dict[str, Any]:
    """Fields of a settings class; null, the default, is the value that the server has."""
    declared = {field.name: field for field in dataclasses.fields(settings)}
    chosen = names or [name for name, field in declared.items() if "help" in field.metadata]
    return {
        name: (
            Optional[_json_type(declared[name])],  # noqa: UP045 - made at run time
            Field(None, description=_DESCRIBED.get(name, declared[name].metadata["help"])),
        )
        for name in chosen
    }


class FrameOptions(Strict):
    """The text around passages; null: the chat template's turns, or the model's own."""

    before: Optional[str] = Field(None, description="Text before a passage.")  # noqa: UP045
    after: Optional[str] = Field(None, description="Text after it.")  # noqa: UP045
    echo_tokens: Optional[int] = Field(  # noqa: UP045
        None, ge=0, le=1 << 20, description="Last tokens repeated behind an appended passage."
    )


FlashbackOptions: Any = create_model(
    "FlashbackOptions",
    __base__=Strict,
    __doc__="How passages are looked up for this request; null: as the server was started.",
    **_optional(RetrievalSettings),
    frame=(Optional[FrameOptions], Field(None, description=FrameOptions.__doc__)),  # noqa: UP045
    fresh_cache=(bool, Field(False, description="Start with empty caches.")),
    truncate=(bool, Field(False, description="Cut a prompt that is too long from the left.")),
    ignore_eos=(bool, Field(False, description="Continue after an end-of-text token.")),
    first_boundary=(
        Annotated[int, Field(ge=1, le=1 << 20)],
        Field(
            FIRST_BOUNDARY,
            description="Tokens of a scored text before its first passage, BOS included.",
        ),
    ),
)

_Sampling: Any = create_model(
    "_Sampling", __base__=Strict, **_optional(SamplingSettings, "top_k", "min_p")
)


class StreamOptions(Strict):
    """The options of a stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


Label = Annotated[str, StringConstraints(max_length=1024)]
"""What clients send for records of their own: it changes no answer."""
Stop = Annotated[str, StringConstraints(min_length=1, max_length=_LONGEST_STOP)]


class JsonSchema(Strict):
    """A JSON schema, by OpenAI's name."""

    schema_: dict[str, Any] = Field(alias="schema", description="The schema itself.")
    name: Label | None = None
    description: Label | None = None
    strict: bool | None = Field(None, description="It is always obeyed.")


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Strict):
    """What obeys a JSON schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class Common(_Sampling):  # type: ignore[misc]
    """Fields of completions and chats."""

    model: str = Field(description="A name that /v1/models gives.")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    n: Annotated[int, Field(ge=1, le=4096)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, StringConstraints(max_length=256)] | None = Field(
        None, description="Written into the server's log."
    )
    cache_salt: Label | None = Field(
        None, description="Only requests with the same one share what is cached."
    )
    flashback: FlashbackOptions | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: (
        Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    metadata: Annotated[dict[str, Label], Field(max_length=64)] | None = None
    service_tier: Literal["auto", "default"] | None = None


class CompletionRequest(Common):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1)]
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    suffix: None = None
    best_of: Literal[1] | None = None


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message of a conversation."""

    role: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = Field(
        None, validate_default=True, description="null: an assistant that said nothing."
    )
    name: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="For chat templates that show it."
    )
    # What an answer's message has besides, so that it can be sent back.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _said(cls, content: object, info: ValidationInfo) -> object:
        """Only an assistant may have said nothing."""
        if content is None and info.data.get("role") != "assistant":
            raise PydanticCustomError("missing", "expected a text")
        return content

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content or ())

    @property
    def shown(self) -> dict[str, str]:
        """As a chat template takes it."""
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": self.text, **named}


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    store: Literal[False] | None = None


class RetrieveRequest(Strict):
    """POST /v1/retrieve: a batch of searches."""

    queries: Annotated[
        list[Annotated[str, StringConstraints(max_length=100_000)]],
        Field(min_length=1, max_length=1024),
    ]
    passages: Annotated[int, Field(ge=1, le=1000)] | None = None
    min_score: Annotated[float, Field(ge=0, le=1e9)] | None = None
    forbid_titles: Annotated[list[str], Field(max_length=1000)] | None = None
    forbid_documents: Annotated[list[str], Field(max_length=1000)] | None = None
