"""How passages are made and indexed."""

from dataclasses import dataclass
from pathlib import Path

from flashback.corpus.passages import DEFAULT_TOKENS, DEFAULT_WORDS
from flashback.errors import IndexFolderError, SettingsError
from flashback.retrieval.analysis import LANGUAGES
from flashback.retrieval.index_folder import Manifest
from flashback.settings import CheckedSettings, setting


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
        "What Latin script is taken for: its words are found by their stems.",
        choices=LANGUAGES,
    )
    kind: str = setting(
        "bm25",
        "bm25 can be changed later; bm25s is built once, with --k1 and --b (extra 'bm25s').",
        choices=("bm25", "bm25s"),
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "bm25" and (self.k1, self.b) != (1.2, 0.75):
            raise SettingsError(
                f"--k1={self.k1} and --b={self.b} with --kind='bm25': it has 1.2 and 0.75; use "
                "--kind='bm25s'"
            )
        if self.drop_near_duplicates and not self.deduplicate:
            raise SettingsError(
                "--drop-near-duplicates=True with --deduplicate=False: equal passages cannot be "
                "kept where similar ones are left out; give one of the two"
            )


def settings_of(folder: Path, manifest: Manifest) -> IndexSettings:
    """The settings with which an index was made.

    Raises:
        IndexFolderError: the manifest has others.
    """
    try:
        return IndexSettings(**manifest.content.settings)
    except (TypeError, SettingsError) as error:
        raise IndexFolderError(
            f"index {folder}: its manifest has other settings ({error}); build it again"
        ) from error
