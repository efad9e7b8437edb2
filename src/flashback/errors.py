"""The errors FlashBack raises for its users; any other exception that escapes is a bug.

FlashBackError              exit code 1: something the user asked for cannot be done
├── SettingsError           exit code 2: a setting is out of range or contradicts another
├── CorpusError             a document source is missing, unreadable or empty
├── IndexFolderError        an index folder is missing, foreign, damaged or half-written
├── RetrieverError          a retriever's server or store is unreachable or answers nonsense
├── EngineError             the server of the model is unreachable, refuses, or answers nonsense
├── AdapterError            an adapter folder is missing, damaged, or belongs to another model
├── TrainingError           a training cannot begin or go on: no examples, a loss that is no number
├── PromptsError            a file of prompts or results is malformed, or of another run
├── ReaderError             a model folder is missing or cannot be loaded
│   └── UnsupportedReader   the model loads, but its cache cannot be cut back exactly
├── ChatTemplateError       a chat template refuses the messages
│   └── NoChatTemplate      the model has no chat template
└── PromptTooLong           the prompt leaves no room for passages and new tokens
"""

import re

_FLAG = re.compile(
    r"`[^`]*`|(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?:=('[^']+'|True|False)?)?"
)
"""A flag in a message, with its value, or a command in backticks, which stays as it is."""
_NAMES = {
    "forbid-title": "forbid_titles",
    "forbid-document": "forbid_documents",
    "lora-target": "lora_targets",
    "train-strides": "strides",
    "window-seed": "seed",
}
"""The arguments that are not named as their flags are."""


def _argument(flag: str) -> str:
    return _NAMES.get(flag, flag.replace("-", "_"))


def _in_python(found: re.Match[str]) -> str:
    text, flag = found[0], found[1]
    return text.replace(f"--{flag}", _argument(flag), 1) if flag else text


def _on_command_line(found: re.Match[str]) -> str:
    text, flag, value = found[0], found[1], found[2]
    if value in ("True", "False"):
        return f"--{flag}" if value == "True" else f"--no-{flag}"
    return f"--{flag} {(value or '')[1:-1]}" if flag and "=" in text else text


class UserMessage(Exception):
    """A line for the user, who may have written Python or a command.

    It is written with flags and Python's values: `--dtype='float32'`, `--truncate=True`. As text it
    has Python's arguments, `dtype='float32'`.
    """

    def __str__(self) -> str:
        return _FLAG.sub(_in_python, super().__str__())

    @property
    def for_command_line(self) -> str:
        """With the command line's flags: `--dtype float32`, `--truncate`."""
        return _FLAG.sub(_on_command_line, super().__str__())

    @property
    def argument(self) -> str | None:
        """The first argument that it names."""
        flags = (found[1] for found in _FLAG.finditer(super().__str__()))
        return next((_argument(flag) for flag in flags if flag), None)


class FlashBackError(UserMessage):
    """A user's request that cannot be fulfilled; the message is one line meant for the user."""

    exit_code = 1


class SettingsError(FlashBackError):
    """A setting is out of range or contradicts another one."""

    exit_code = 2


class CorpusError(FlashBackError):
    """A source of documents is missing, unreadable, malformed or empty."""


class IndexFolderError(FlashBackError):
    """A folder is not a whole index of a format this version reads."""


class RetrieverError(FlashBackError):
    """A retriever's server or store cannot be reached, refuses, or does not answer as it should."""


class EngineError(FlashBackError):
    """A server that runs the reader cannot be reached, refuses, or does not answer as it should."""


class AdapterError(FlashBackError):
    """A folder is no whole adapter, or not one for the model it was asked for."""


class TrainingError(FlashBackError):
    """A training cannot begin or go on."""


class PromptsError(FlashBackError):
    """A file of prompts has a line that is none, or results are of another run."""


class ReaderError(FlashBackError):
    """A model or tokenizer cannot be found or loaded."""


class UnsupportedReader(ReaderError):
    """The model's cache cannot be cut back to a prefix without changing what it computes."""


class ChatTemplateError(FlashBackError):
    """A model's chat template refuses the messages."""


class NoChatTemplate(ChatTemplateError):
    """The model has no chat template."""


class PromptTooLong(FlashBackError):
    """The prompt does not fit the reader's window beside the passages and the next stride."""


class FlashBackWarning(UserMessage, UserWarning):
    """Something was done as asked, but is probably not what was meant; one line for the user."""


def missing_extra(what: str, package: str | None, extra: str) -> SettingsError:
    """What to raise where a package of an extra is not installed."""
    return SettingsError(
        f"{what} needs {package}; install FlashBack with the extra {extra}: "
        f"pip install '.[{extra}]' in a clone of the project"
    )
