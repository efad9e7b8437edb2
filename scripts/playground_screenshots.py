"""Pictures of the playground for the documentation, from a running server.

    flashback index src/flashback/cli/demo_texts/tolmere.jsonl --out IDX --model smollm2
    flashback serve --index IDX --model smollm2 &
    python scripts/playground_screenshots.py http://127.0.0.1:8000 phone dark desktop
    flashback serve --index FACTS --model smollm2 --port 8001 &    # of readers_tests/facts.jsonl
    python scripts/playground_screenshots.py http://127.0.0.1:8001 conversation

Needs Chromium (Debian: apt-get install chromium). Writes docs/playground/NAME.png.
"""

import argparse
import json
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
    """The size of the page, the values of its form, and what is said in a conversation."""

    name: str
    width: int
    height: int
    fields: dict[str, str]
    dark: bool = False
    said: tuple[str, ...] = ()


_BEGINNING = "The lighthouse of Tolmere stands on"
PICTURES = (
    Picture("phone", 390, 1330, {"prompt": _BEGINNING, "tokens": "48"}),
    Picture("dark", 1280, 820, {"prompt": _BEGINNING, "tokens": "48"}, dark=True),
    # Last, since a server's first passes are slower than later ones.
    Picture("desktop", 1280, 1240, {"prompt": _BEGINNING, "compare": "", "tokens": "48"}),
    Picture(
        *("conversation", 1280, 1190, {"chat": "", "tokens": "64"}),
        said=(
            "Who built the lighthouse of Skarvik?",
            "When was the lighthouse built?",
            "How long is the bridge over the Orlen?",
        ),
    ),
)


def take(server: str, picture: Picture) -> Path:
    """Open the page, let it write, and keep what is seen."""
    path = FOLDER / f"{picture.name}.png"
    with opened() as page:
        page.look(picture.width, picture.height, dark=picture.dark)
        page.open(f"{server}/?{urlencode(picture.fields, quote_via=quote)}")
        time.sleep(_SETTLES)
        for text in picture.said or [None]:
            if text is not None:
                page.run(f"document.getElementById('prompt').value = {json.dumps(text)}")
            page.run("document.getElementById('form').requestSubmit()")
            page.wait("document.getElementById('status').textContent == 'finished'")
        page.run("scrollTo(0, 0)")
        page.screenshot(path)
    size = path.stat().st_size
    assert size < LARGEST, f"{path} has {size} bytes; expected less than {LARGEST}"
    return path


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("server", help="its address, such as http://127.0.0.1:8000")
    names = [picture.name for picture in PICTURES]
    words.add_argument("names", nargs="+", choices=names, help="the pictures to take")
    given = words.parse_args()
    server = given.server.rstrip("/")
    if urlsplit(server).scheme not in {"http", "https"}:
        words.error(f"{server}: expected an address that begins with http://")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for one in PICTURES:
        if one.name in given.names:
            print(take(server, one))
