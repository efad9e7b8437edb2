"""The errors FlashBack raises for its users; any other exception that escapes is a bug.

FlashBackError              exit code 1: something the user asked for cannot be done
├── SettingsError           exit code 2: a setting is out of range or contradicts another
├── CorpusError             a document source is missing, unreadable or empty
├── IndexFolderError        an index folder is missing, foreign, damaged or half-written
├── AdapterError            an adapter folder is missing, damaged, or belongs to another model
├── TrainingError           a training cannot begin or go on: no examples, a loss that is no number
├── PromptsError            a file of prompts or results is malformed, or of another run
├── ReaderError             a model folder is missing or cannot be loaded
│   └── UnsupportedReader   the model loads, but its cache cannot be cut back exactly
├── ChatTemplateError       a chat template refuses the messages
│   └── NoChatTemplate      the model has no chat template
└── PromptTooLong           the prompt leaves no room for passages and new tokens
"""


class FlashBackError(Exception):
    """A user's request that cannot be fulfilled; the message is one line meant for the user."""

    exit_code = 1


class SettingsError(FlashBackError):
    """A setting is out of range or contradicts another one."""

    exit_code = 2


class CorpusError(FlashBackError):
    """A source of documents is missing, unreadable, malformed or empty."""


class IndexFolderError(FlashBackError):
    """A folder is not a whole index of a format this version reads."""


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


class FlashBackWarning(UserWarning):
    """Something was done as asked, but is probably not what was meant; one line for the user."""
