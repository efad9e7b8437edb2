"""What ships beside the code: the citation and the container. Wheels: `scripts/check_wheel.sh`."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

from flashback import __version__
from flashback.cli.main import app
from flashback.cli.serve import serve

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def test_the_version_to_cite_is_this_one() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [__version__]


def test_the_container_starts_the_server() -> None:
    entry = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    name, command, *options = json.loads(entry[0])
    assert (name, app.commands[command]) == ("flashback", serve)
    serve.make_context(command, [*options, "--pattern", "slot"])


def test_the_container_gets_what_it_copies() -> None:
    rules = (ROOT / ".dockerignore").read_text("utf-8").split()
    copied = " ".join(re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE)).split()
    assert {"src", "pyproject.toml"} <= {*copied}
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in rules or not any(fnmatch(name, rule) for rule in rules)
