"""The settings of the server."""

from dataclasses import dataclass

from flashback.declared import CheckedSettings, setting
from flashback.retrieval.guard import OnRetrievalError

MIB = 1 << 20


@dataclass(frozen=True)
class ServerSettings(CheckedSettings):
    """Address, access and limits."""

    host: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0: all of this machine's.")
    port: int = setting(8000, "Port to listen on; 0: any that is free.", low=0, high=65535)
    model_name: str = setting(
        "", "The model's name in the API (default: the last part of --model)."
    )
    api_key: str = setting(
        "", "Key that clients must send (default: $FLASHBACK_API_KEY; without: none)."
    )
    cors_origins: tuple[str, ...] = setting(
        (), "Let pages of this origin call the API (repeatable).", flag="--cors-origin"
    )
    memory: int = setting(
        1024,
        "MiB of keys and values to keep: of texts, histories and passages.",
        low=0,
        high=1 << 30,
    )
    max_active: int = setting(
        32,
        "Requests that are active at a time; they take turns, stride by stride.",
        low=1,
        high=4096,
    )
    max_queue: int = setting(
        64, "Requests that may wait to become active; more are refused.", low=0, high=1 << 20
    )
    max_body: int = setting(4096, "KiB of a request's body.", low=1, high=1 << 20)
    max_tokens: int = setting(4096, "Tokens to write for one choice.", low=1, high=1 << 20)
    max_choices: int = setting(128, "Choices of a request: prompts times n.", low=1, high=4096)
    time_limit: float = setting(
        300.0, "Seconds of a request; it then ends with what was written.", low=0.1, high=1e6
    )
    retrieval_limit: float = setting(
        10.0, "Seconds of a search; one that takes longer has failed.", low=0.01, high=1e6
    )
    reload_every: float = setting(
        0.5,
        "Seconds between looks for a new version of the index; 0: only when asked (SIGHUP, "
        "POST /v1/reload).",
        low=0.0,
        high=1e6,
    )
    on_retrieval_error: OnRetrievalError = setting(
        OnRetrievalError.STOP,
        "A retriever that fails ends the text (stop), or the stride does without (continue).",
    )
    grace: float = setting(
        10.0, "Seconds to finish active requests after SIGTERM or Ctrl-C.", low=0.0, high=1e6
    )
    special_tokens_in_messages: bool = setting(
        False,
        "Special tokens written in messages are meant; they can end a turn, and forge one.",
    )
    log_prompts: bool = setting(False, "Write prompts and answers into the log.")
