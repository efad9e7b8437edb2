"""Pictures of the playground for the documentation, from a running server.

    flashback serve --index IDX &
    python scripts/playground_screenshots.py http://127.0.0.1:8000

Needs Chromium (Debian: apt-get install chromium). Writes docs/playground/{desktop,phone,dark}.png.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from chromium import opened

FOLDER = Path(__file__).parent.parent / "docs" / "playground"
LARGEST = 300_000
"""Bytes of a picture."""
_SETTLES = 5
"""Seconds after which a browser that has just started leaves the processor to the server."""


@dataclass(frozen=True)
class Picture:
    """The size of the page and the values of its form."""

    name: str
    width: int
    height: int
    fields: dict[str, str]
    dark: bool = False


PICTURES = (
    Picture("phone", 390, 1250, {"prompt": "The json module", "tokens": "48"}),
    Picture("dark", 1280, 900, {"prompt": "The json module", "tokens": "96"}, dark=True),
    # Last, since a server's first passes are slower than later ones.
    Picture("desktop", 1280, 1500, {"compare": "", "tokens": "96", "long": ""}),
)


def take(server: str, picture: Picture) -> Path:
    """Open the page, let it write, and keep what is seen."""
    path = FOLDER / f"{picture.name}.png"
    with opened() as page:
        page.look(picture.width, picture.height, dark=picture.dark)
        page.open(f"{server}/?{urlencode(picture.fields, quote_via=quote)}")
        time.sleep(_SETTLES)
        page.run("document.getElementById('form').requestSubmit()")
        page.wait("document.getElementById('status').textContent == 'finished'")
        page.screenshot(path)
    size = path.stat().st_size
    assert size < LARGEST, f"{path} has {size} bytes; expected less than {LARGEST}"
    return path


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("server", help="its address, such as http://127.0.0.1:8000")
    server = words.parse_args().server.rstrip("/")
    if urlsplit(server).scheme not in {"http", "https"}:
        words.error(f"{server}: expected an address that begins with http://")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for one in PICTURES:
        print(take(server, one))
