"""Which modules of the package a call enters, in the order of their first entries."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import flashback

_SOURCE = f"{Path(flashback.__file__).parent}/"
_PREPARATIONS = {"__init__", "__post_init__", "__enter__", "<module>"}


class Trace:
    """Modules by their paths below the package. Constructors do not count."""

    def __init__(self) -> None:
        self.entered: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Called by Python at every call and return."""
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(_SOURCE):
            return
        module = file.removeprefix(_SOURCE)
        if module not in self.entered and not _prepares(frame):
            self.entered.append(module)


def _prepares(frame: FrameType | None) -> bool:
    """Whether a call belongs to an import, a constructor or the entry of a `with` block."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_SOURCE) and code.co_name in _PREPARATIONS:
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def traced() -> Iterator[Trace]:
    """Trace this thread, and the threads that are started in the block."""
    trace, before = Trace(), sys.getprofile()
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        yield trace
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
