"""Debian's Chromium without a window, driven over its own protocol through a pipe.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium")
"""None: not installed (Debian: apt-get install chromium)."""
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", "--remote-debugging-pipe"),
)


class Page:
    """A page in the browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = os.fdopen(answers, "rb", closefd=False)
        self._number = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        """What the page's console said in error."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol.

        Raises:
            RuntimeError: Chromium refuses it.
        """
        self._number += 1
        record: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            record["sessionId"] = self._session
        os.write(self._commands, json.dumps(record).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _read(self) -> bytes:
        part = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("Chromium ended")
            part += byte
        return bytes(part)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(event["params"]))
        if event.get("method") == "Log.entryAdded":
            entry = event["params"]["entry"]
            if entry["level"] == "error":
                self.complaints.append(entry["text"])

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the page and the preferred colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[colours])

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)
        self.wait(f"location.href == {json.dumps(url)} && document.readyState == 'complete'")

    def run(self, script: str) -> Any:
        """The value of a script's expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Press a key; modifiers: 2 is control."""
        for kind in ("rawKeyDown", "keyUp"):
            pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type=kind, modifiers=modifiers, **pressed)

    def wait(self, condition: str, seconds: float = 240) -> None:
        """Until a script's expression is true.

        Raises:
            TimeoutError: it does not become true.
        """
        ends = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > ends:
                raise TimeoutError(f"{condition}; the page says: {self.complaints}")
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def opened() -> Iterator[Page]:
    """A page in a Chromium with an empty profile."""
    assert PROGRAM is not None
    child_reads, commands = os.pipe()
    answers, child_writes = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Chromium reads from 3 and writes to 4.
        renumber = f'exec "$@" 3<&{child_reads} 4>&{child_writes}'
        browser = subprocess.Popen(
            ["bash", "-c", renumber, "bash", PROGRAM, *_OPTIONS, f"--user-data-dir={profile}"],
            pass_fds=(child_reads, child_writes),
            stderr=subprocess.DEVNULL,
        )
        os.close(child_reads)
        os.close(child_writes)
        try:
            yield Page(commands, answers)
        finally:
            browser.terminate()
            browser.wait()
            os.close(commands)
            os.close(answers)
