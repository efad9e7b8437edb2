"""A hook of MkDocs: the pages link to files of the repository, which the site has, too.

README.md and others become pages; any other file that a page links to is copied. So the same links
work on GitHub and on the site.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages that are no files of docs/: their places in the repository and on the site."""
COPIES = "repository/"
_LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages and files from outside docs/."""
    for source, place in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, place, content=text))
    for target in sorted({target for page in files.documentation_pages() for target in _of(page)}):
        if _place(target).startswith(COPIES):
            path = str(ROOT / target)
            files.append(File.generated(config, _place(target), abs_src_path=path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between places in the repository into links between places on the site."""
    here = posixpath.dirname(page.file.src_uri)
    home = posixpath.dirname(_home(page.file.src_uri))

    def moved(link: "re.Match[str]") -> str:
        target = posixpath.normpath(posixpath.join(home, link[0]))
        return posixpath.relpath(_place(target), here or ".")

    return _LINK.sub(moved, markdown)


def _of(page: File) -> Iterator[str]:
    """The files that a page links to, by their places in the repository."""
    home = posixpath.dirname(_home(page.src_uri))
    for link in _LINK.findall(page.content_string):
        yield posixpath.normpath(posixpath.join(home, link))


def _home(place: str) -> str:
    """Where in the repository a page of the site is."""
    return next((home for home, page in PAGES.items() if page == place), "docs/" + place)


def _place(target: str) -> str:
    """Where on the site a file of the repository is."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return PAGES.get(target, COPIES + target)
