"""A real vLLM as a process, for the tests and scripts that need one."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2

OPTIONS = (
    *("--dtype", "float32", "--block-size", "32", "--enforce-eager", "--max-model-len", "4096"),
    *("--enable-prefix-caching", "--enable-prompt-tokens-details"),
)
"""bfloat16 gives other tokens than float32 does; without details nothing tells what was cached."""
_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
_MINUTES = 1200.0
"""Seconds; a start takes one minute on an idle machine."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def command(python: str, model: Path, name: str, port: int) -> list[str]:
    """What starts the server of a model's folder."""
    server = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    place = ["--port", str(port), "--model", str(model), "--served-model-name", name]
    return [*server, *place, *OPTIONS]


@contextlib.contextmanager
def running(command: Sequence[str], url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers, until the block ends; its whole group of processes is killed."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=os.environ | _ENVIRONMENT, start_new_session=True
        )
    try:
        until_up(url, process)
        yield process
    finally:
        kill(process)


def until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server lists its models."""
    ends = time.monotonic() + _MINUTES
    while True:
        assert process.poll() is None, "the server ended; its log says why"
        assert time.monotonic() < ends, "the server does not start"
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"{url}/models", timeout=5).status_code == 200:
                return
        time.sleep(0.2)


def kill(process: subprocess.Popen[bytes]) -> None:
    """A server and all that it started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
