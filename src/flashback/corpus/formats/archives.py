"""Files that are ZIP archives inside: opened only if they are whole, open and not too large."""

import contextlib
from collections.abc import Iterator
from zipfile import BadZipFile, ZipFile

from flashback.corpus.formats.format import MOST_FILE_BYTES, Source, Unreadable

MOST_UNPACKED_BYTES = 512 << 20
"""Of all that an archive says it holds; more than it says is never unpacked."""
_COMPOUND_FILE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""The beginning of Microsoft's older container, in which encrypted files are, too."""
_PARSED = ("ml", ".rels", ".opf")
"""How the names of members end that are parsed as a whole: `.xml`, `.html`, `.xhtml`."""


@contextlib.contextmanager
def archive(source: Source) -> Iterator[ZipFile]:
    """A file's archive.

    Raises:
        Unreadable: it is no archive, encrypted, or a bomb.
    """
    with source.open() as raw:
        if raw.read(len(_COMPOUND_FILE)) == _COMPOUND_FILE:
            raise Unreadable("encrypted, or of an old format; save it without a password, as .docx")
        try:
            packed = ZipFile(raw)
        except BadZipFile as error:
            raise Unreadable(f"damaged: {error}") from error
        with packed:
            _check(packed)
            yield packed


def _check(packed: ZipFile) -> None:
    members = packed.infolist()
    if any(member.flag_bits & 1 for member in members):
        raise Unreadable("encrypted; save it without a password")
    size = sum(member.file_size for member in members)
    if size > MOST_UNPACKED_BYTES:
        raise Unreadable(f"unpacked {size:,} bytes; expected at most {MOST_UNPACKED_BYTES:,}")
    for member in members:
        if member.file_size > MOST_FILE_BYTES and member.filename.lower().endswith(_PARSED):
            raise Unreadable(
                f"{member.filename} has {member.file_size:,} bytes; expected at most "
                f"{MOST_FILE_BYTES:,}"
            )
