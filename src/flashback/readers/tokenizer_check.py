"""Whether a tokenizer gives plain text back; without its files, an empty one may be made."""

import re
import warnings
from pathlib import Path

from transformers import PreTrainedTokenizerBase as Tokenizer

from flashback.errors import FlashBackWarning, ReaderError

_FILES = re.compile(r"(tokenizer|vocab|tekken|merges)\b.*|.*\.(model|tiktoken)")
"""Names of files with a vocabulary; `tokenizer_config.json` has none."""
_PLAIN = "The quick brown fox jumps over 13 lazy dogs and 2046 cats"
_SCRIPTS = {
    "accented Latin": "élève Łódź",
    "Cyrillic": "привет",
    "Greek": "λόγος",
    "Arabic": "سلام",
    "Devanagari": "नमस्ते",
    "Chinese": "仓库",
    "Korean": "한국어",
}


def check_files(name: str, folder: Path) -> None:
    """Refuse a model's folder without any file of a tokenizer.

    Raises:
        ReaderError: naming the file that is missing.
    """
    if not any(_FILES.fullmatch(path.name) for path in folder.iterdir()):
        raise ReaderError(
            f"model {name}: tokenizer.json is missing in its folder, and so is every other file of "
            "a tokenizer; save the model's tokenizer there"
        )


def check_tokenizer(name: str, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that loses letters or digits; warn of scripts that it loses.

    Raises:
        ReaderError: what it makes of a text.
    """
    if (found := _back(tokenizer, _PLAIN)) != _letters(_PLAIN):
        raise ReaderError(
            f"model {name}: its tokenizer makes {found[:40]!r} of {_PLAIN!r}, expected the same "
            "letters and digits; its vocabulary (tokenizer.json) is missing, damaged, or another's"
        )
    lost = [script for script, text in _SCRIPTS.items() if _back(tokenizer, text) != _letters(text)]
    if lost:
        warnings.warn(
            f"the tokenizer of {name} loses {', '.join(lost)} text; use another reader for such "
            "texts",
            FlashBackWarning,
            stacklevel=3,
        )


def _back(tokenizer: Tokenizer, text: str) -> str:
    """The letters of a text that was encoded and decoded."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return _letters(str(tokenizer.decode(ids, skip_special_tokens=True)))


def _letters(text: str) -> str:
    """Letters and digits, their case folded: tokenizers may have one case, and spaces differ."""
    return "".join(one for one in text.casefold() if one.isalnum())
