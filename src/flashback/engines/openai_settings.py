"""How a server that runs the model is found, and how long it is waited for."""

import os
from dataclasses import dataclass

from flashback.declared import CheckedSettings, setting
from flashback.errors import SettingsError

_KEY = "FLASHBACK_ENGINE_KEY"


@dataclass(frozen=True)
class RemoteSettings(CheckedSettings):
    """The server of the engine `openai`."""

    base_url: str = setting(
        "", "With --engine openai: the server's URL, such as http://host:8000/v1."
    )
    tokenizer: str = setting(
        "", "With --engine openai: folder or hub name of the model's tokenizer (default: --model)."
    )
    api_key_env: str = setting(
        _KEY, "With --engine openai: the environment variable with the server's key, if it has one."
    )
    token_limit: float = setting(
        60.0,
        "With --engine openai: seconds without a token after which the server has failed.",
        low=0.01,
        high=1e6,
    )

    @property
    def api_key(self) -> str | None:
        """The server's key; None: there is none.

        Raises:
            SettingsError: a variable was named, and it is not set.
        """
        key = os.environ.get(self.api_key_env)
        if not key and self.api_key_env != _KEY:
            raise SettingsError(
                f"--api-key-env={self.api_key_env!r}: there is no such environment variable; put "
                "the server's key into it"
            )
        return key or None
