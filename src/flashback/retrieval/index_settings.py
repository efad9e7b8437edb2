"""How passages are made and indexed."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flashback.corpus.passages import DEFAULT_TOKENS, DEFAULT_WORDS
from flashback.declared import AUTO, CheckedSettings, named, setting
from flashback.errors import IndexFolderError, SettingsError
from flashback.retrieval.analysis import LANGUAGES, NEUTRAL
from flashback.retrieval.index_folder import Manifest

DENSE = "dense"
"""A kind of index: passages as vectors."""
_OF_WORDS = ("language", "k1", "b")
"""Settings of indexes of words."""


@dataclass(frozen=True)
class IndexSettings(CheckedSettings):
    """How passages are made and indexed."""

    passage_words: int = setting(DEFAULT_WORDS, "Words per passage at most.", low=1, high=100_000)
    passage_tokens: int = setting(
        DEFAULT_TOKENS,
        "m: tokens per passage at most, its title included, so that a reader can show all of it.",
        low=1,
        high=100_000,
    )
    title: bool = setting(True, "Make the title part of the passage: searched, and shown.")
    language: str = setting(
        "english",
        "What Latin script is taken for: its words are found by their stems; not of kind dense. "
        f"{', '.join(LANGUAGES)}, or several of these, such as english+german. auto: the languages "
        "of a sample of the passages (extra 'languages'). none: words are found as written.",
    )
    kind: str = setting(
        "bm25",
        "bm25: passages are found by their words, and can be changed later; bm25s: by their words "
        "with --k1 and --b, built once (extra 'bm25s'); dense: by their meaning, as vectors, built "
        "once (extra 'dense').",
        choices=("bm25", "bm25s", "dense"),
    )
    k1: float = setting(1.2, "BM25's k1, of kind bm25s.", low=0, high=100)
    b: float = setting(0.75, "BM25's b, of kind bm25s.", low=0, high=1)
    deduplicate: bool = setting(
        True, "Store passages once whose title and text are equal; their documents stay findable."
    )
    drop_near_duplicates: bool = setting(
        False,
        "Leave out, and list, near-identical passages, too: at least 0.9 of their 3-word sequences "
        "are the same, title, numbers and symbols are equal, and no word differs that may deny.",
    )

    overlap: int = setting(
        0,
        "Words at the end of a passage that the next one repeats; characters in scripts without "
        "spaces between words.",
        low=0,
        high=100_000,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_kind()
        _check_language(self.language)
        if self.overlap >= self.passage_words:
            raise SettingsError(
                f"--overlap={self.overlap}: expected less than --passage-words, which is "
                f"{self.passage_words}"
            )
        if self.drop_near_duplicates and not self.deduplicate:
            raise SettingsError(
                "--drop-near-duplicates=True with --deduplicate=False: equal passages cannot be "
                "kept where similar ones are left out; give one of the two"
            )

    def record(self, kind: str) -> dict[str, Any]:
        """What the manifest of an index says: all that means something to its kind."""
        left_out = _OF_WORDS if kind == DENSE else ()
        own = {name: value for name, value in asdict(self).items() if name not in left_out}
        return own | {"kind": kind}

    def _check_kind(self) -> None:
        """Refuse settings of other kinds."""
        if self.kind != "bm25s" and (self.k1, self.b) != (1.2, 0.75):
            raise SettingsError(
                f"--k1={self.k1} and --b={self.b} with --kind={self.kind!r}: they are settings of "
                "--kind='bm25s'; use it, or leave them out"
            )
        if self.kind == "dense" and self.language != "english":
            raise SettingsError(
                f"--language={self.language!r} with --kind='dense': the encoder has its languages; "
                "leave it out, or use --kind='bm25'"
            )


def _check_language(language: str) -> None:
    names = language.split("+")
    for name in names:
        named("--language", name, LANGUAGES if len(names) > 1 else (*LANGUAGES, NEUTRAL, AUTO))
    if len({*names}) < len(names):
        raise SettingsError(f"--language={language!r}: expected every language once")


def settings_of(folder: Path, manifest: Manifest) -> IndexSettings:
    """The settings with which an index was made.

    Raises:
        IndexFolderError: the manifest has others.
    """
    try:
        made = IndexSettings(**manifest.content.settings)
        if made.language == AUTO:
            raise SettingsError("--language='auto': expected what was found")
        return made
    except (TypeError, SettingsError) as error:
        raise IndexFolderError(
            f"index {folder}: its manifest has other settings ({error}); build it again"
        ) from error


@dataclass(frozen=True)
class DenseSettings(CheckedSettings):
    """How passages and queries become vectors."""

    encoder: str = setting(
        "wordllama",
        "With --kind dense: wordllama, a model of sentence-transformers (a folder or hub name), or "
        "onnx:FOLDER.",
    )
    encoder_device: str = setting(
        "auto", "With --kind dense: where passages are encoded: auto, cpu, cuda, cuda:N or mps."
    )
