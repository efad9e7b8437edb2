"""The settings of `flashback bench replicas`; importing them does not import PyTorch."""

from dataclasses import dataclass

from flashback.declared import CheckedSettings, setting
from flashback.errors import SettingsError


@dataclass(frozen=True)
class ReplicasSettings(CheckedSettings):
    """Conversations, the replicas that answer them, and one that dies."""

    replicas: int = setting(8, "Servers behind the front.", low=1, high=1000)
    conversations: int = setting(4000, "Conversations, one after another.", low=1, high=10**6)
    arrivals: float = setting(1.0, "Conversations that begin per second.", low=1e-6, high=1e6)
    turns: float = setting(8.0, "Turns of a conversation, in the mean.", low=1.0, high=1e4)
    question_tokens: int = setting(200, "Tokens of a question, in the mean.", low=1, high=1 << 20)
    answer_tokens: int = setting(200, "Tokens of an answer, in the mean.", low=1, high=1 << 20)
    thinking: float = setting(
        30.0, "Seconds between an answer and the next question, in the mean.", low=0.0, high=1e6
    )
    hot: float = setting(
        0.0,
        "The share of conversations that begin alike, and so belong to one replica.",
        low=0.0,
        high=1.0,
    )
    cache_tokens: int = setting(
        120_000, "Tokens whose keys and values a replica keeps.", low=0, high=1 << 40
    )
    prefill_rate: float = setting(
        30_000.0,
        "Tokens per second that a replica prefills, one request at a time.",
        low=1,
        high=1e9,
    )
    decode_rate: float = setting(
        20.0, "Tokens per second that each request gets, together with others.", low=0.01, high=1e6
    )
    dies: float = setting(
        0.5,
        "When a replica dies, as a share of the time in which conversations begin; 0: none does.",
        low=0.0,
        high=1.0,
    )
    dead: float = setting(60.0, "Seconds until it returns, with an empty cache.", low=0.0, high=1e6)
    load_factor: float = setting(2.0, "See 'flashback serve'.", low=1.0, high=1e6)
    free_requests: int = setting(4, "See 'flashback serve'.", low=1, high=1 << 20)
    seed: int = setting(0, "Seed of the conversations.", low=0, high=2**63 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dies and self.replicas < 2:
            raise SettingsError(
                f"--replicas={self.replicas}: none is left while one is dead; give --dies 0"
            )

    @property
    def death(self) -> float | None:
        """Seconds from the start; None: nobody dies."""
        return self.dies * self.conversations / self.arrivals if self.dies else None
