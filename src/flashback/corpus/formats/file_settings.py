"""Which files of a folder are read, and which fields of records."""

from dataclasses import dataclass
from fnmatch import fnmatch

from flashback.declared import CheckedSettings, setting

TEXT_FIELDS = ("text", "contents")
"""Ours and BEIR's, and Pyserini's."""
TITLE_FIELDS = ("title",)
ID_FIELDS = ("id", "_id")
"""Ours, and BEIR's."""


@dataclass(frozen=True)
class FileSettings(CheckedSettings):
    """Which files of a folder are read, and which fields of records."""

    include: tuple[str, ...] = setting(
        (),
        "Read only those files of folders whose name or path in the folder fits this pattern, such "
        "as '*.pdf' or 'manuals/*' (repeatable).",
    )
    exclude: tuple[str, ...] = setting(
        (), "Leave out files and folders whose name or path fits this pattern (repeatable)."
    )
    hidden: bool = setting(False, "Read hidden files and folders of folders, too.")
    text_field: str = setting(
        "", "The field or column with the text of a record; empty: text or contents."
    )
    title_field: str = setting("", "The field or column with its title; empty: title.")
    id_field: str = setting("", "The field or column with its id; empty: id or _id.")

    @property
    def text_fields(self) -> tuple[str, ...]:
        """Where the text of a record may be, the first that is there counts."""
        return (self.text_field,) if self.text_field else TEXT_FIELDS

    @property
    def title_fields(self) -> tuple[str, ...]:
        """Where its title may be."""
        return (self.title_field,) if self.title_field else TITLE_FIELDS

    @property
    def id_fields(self) -> tuple[str, ...]:
        """Where its id may be."""
        return (self.id_field,) if self.id_field else ID_FIELDS

    def why_not(self, path: str, *, folder: bool = False) -> str | None:
        """Why a file (or folder) of a folder is not to be read; None: it is.

        Args:
            path: below the folder, with slashes.
        """
        name = path.rpartition("/")[2]
        if name.startswith(".") and not self.hidden:
            return "hidden; --hidden=True reads it"
        for pattern in self.exclude:
            if _fits(path, name, pattern.removesuffix("/")):
                return f"fits --exclude={pattern!r}"
        if not folder and self.include and not any(_fits(path, name, p) for p in self.include):
            return "fits no --include"
        return None


def _fits(path: str, name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(path, pattern.removeprefix("./"))
