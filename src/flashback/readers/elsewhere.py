"""A reader whose model runs elsewhere: its tokenizer and what else its folder says of texts."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from transformers import GenerationConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from flashback.engines.openai_probe import Sample
from flashback.errors import SettingsError
from flashback.readers.load import Source, config_of, load_tokenizer, locate_tokenizer, window_of
from flashback.readers.text_reader import TextReader, ids_of

_VARIED = 160
"""Ids of a sample."""
_SPLIT = "The lighthouse keeper counts seventeen ships"


def load_text_reader(name: str, tokenizer: str, *, trust_remote_code: bool = False) -> TextReader:
    """A reader without its model; its window is not known yet.

    Args:
        name: the reader's.
        tokenizer: a folder with a tokenizer's files, or what `load_reader` takes; weights are not
            read.

    Raises:
        ReaderError: the tokenizer is missing or damaged.
    """
    return TextReader(
        name=name,
        tokenizer=load_tokenizer(tokenizer, trust_remote_code),
        window=0,
        window_reason="unknown",
        ends=_ends(locate_tokenizer(tokenizer)),
        place="elsewhere",
    )


def _ends(source: Source) -> frozenset[int]:
    """The ids that end a text by a generation configuration, if there is one."""
    if source.gguf is not None:
        return frozenset()
    try:
        return ids_of(GenerationConfig.from_pretrained(source.path).eos_token_id)
    except (OSError, ValueError):
        return frozenset()


def window_elsewhere(tokenizer: str, served: int | None, asked: int | None) -> tuple[int, str]:
    """The positions that may be used, and why.

    Args:
        tokenizer: see `load_text_reader`; its folder's configuration counts where a server says
            nothing.
        served: what the server says.
        asked: at most so many; None: all.

    Raises:
        SettingsError: more are asked for than there are, or nobody says how many there are.
    """
    size, reason = served, "the server's"
    if size is None:
        folder = Path(tokenizer).expanduser()
        if asked is None and not (folder / "config.json").is_file():
            raise SettingsError("--window: the server does not say how many positions it has")
        size, reason = asked or 0, "as asked"
        if (folder / "config.json").is_file():
            size, reason = window_of(config_of(Source(tokenizer, str(folder))), None)
    if asked is None:
        return size, reason
    if not 1 <= asked <= size:
        raise SettingsError(f"--window={asked}: expected 1 to {size} ({reason})")
    return asked, "as asked"


def sample_of(name: str, tokenizer: Tokenizer) -> Sample:
    """What a tokenizer says of itself, to compare with a server's."""
    split = [
        token
        for letter in _SPLIT
        for token in tokenizer(letter, add_special_tokens=False)["input_ids"]
    ]
    varied = tuple(islice(_plain(tokenizer), _VARIED))
    return Sample(name, tuple(split), varied, _text(tokenizer, varied))


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _plain(tokenizer: Tokenizer) -> Iterator[int]:
    """Ids of whole characters, from the last one down, spread over the vocabulary."""
    size, special = len(tokenizer), set(tokenizer.all_special_ids)
    step = max(size // (2 * _VARIED), 1)
    for token in range(size - 1, -1, -step):
        text = _text(tokenizer, [token])
        if token not in special and text.strip() and "\ufffd" not in text:
            yield token
