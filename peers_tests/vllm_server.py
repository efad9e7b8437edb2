"""A real vLLM as a process, for the tests and scripts that need one."""

import contextlib
import json
import os
import shutil
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
CONNECTOR = Path(__file__).parent.parent / "src" / "flashback" / "engines" / "vllm_connector.py"
_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
_MINUTES = 1200.0
"""Seconds; a start takes one minute on an idle machine."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def with_slot(folder: Path, passage_bytes: int) -> list[str]:
    """The options of a server with FlashBack's connector, and its file in its `PYTHONPATH`."""
    shutil.copy(CONNECTOR, folder)
    own = {
        "kv_connector": "FlashBackConnector",
        "kv_connector_module_path": CONNECTOR.stem,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"passage_bytes": passage_bytes},
    }
    return ["--kv-transfer-config", json.dumps(own)]


def command(python: str, model: Path, name: str, port: int) -> list[str]:
    """What starts the server of a model's folder."""
    server = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    place = ["--port", str(port), "--model", str(model), "--served-model-name", name]
    return [*server, *place, *OPTIONS]


@contextlib.contextmanager
def running(
    command: Sequence[str], url: str, log: Path, modules: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers, until the block ends; its whole group of processes is killed."""
    process = started(command, log, modules)
    try:
        until_up(url, process)
        yield process
    finally:
        kill(process)


def started(
    command: Sequence[str], log: Path, modules: Path | None = None
) -> subprocess.Popen[bytes]:
    """A server that starts.

    Args:
        log: what it says is added to it.
        modules: a folder of modules that it finds, too.
    """
    environment = os.environ | _ENVIRONMENT
    if modules is not None:
        environment["PYTHONPATH"] = str(modules)
    with log.open("ab") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        )


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
