"""Where and in which precision a model runs."""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from flashback.errors import SettingsError
from flashback.readers.weight_settings import Weights

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DEVICE = re.compile(r"cpu|mps|cuda(:\d{1,3})?")


@dataclass(frozen=True)
class Placement:
    """Where and in which precision a model runs, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str
    weights: Weights = Weights.FULL
    products: tuple[str, ...] = ()
    """How weights of each shape are multiplied, see `choice.py`; empty: as PyTorch does."""

    @property
    def dtype_name(self) -> str:
        """As on the command line: `float32`, `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        weights = "" if self.weights is Weights.FULL else f", {self.weights} weights"
        return f"{self.dtype_name} on {self.device} ({self.reason}){weights}"


def choose_placement(device: str = "auto", dtype: str = "auto") -> Placement:
    """Pick device and dtype: what was asked for, else the fastest device and its usual dtype.

    Raises:
        SettingsError: an unknown device or dtype, or a device this machine does not have.
    """
    devices = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if device != "auto":
        _check_device(device, devices)
    if dtype != "auto" and dtype not in _DTYPES:
        raise SettingsError(f"--dtype={dtype!r}: expected auto, {' or '.join(_DTYPES)}")
    if device == "auto":
        device = next(name for name, count in devices.items() if count)
        reason = "no GPU found" if device == "cpu" else f"{device} found"
    else:
        reason = "device as asked"
    if device == "cuda" and (rank := os.environ.get("LOCAL_RANK", "")).isdecimal():
        device = f"cuda:{rank}"  # a process of torchrun has a GPU of its own
    if dtype != "auto":
        return Placement(torch.device(device), _DTYPES[dtype], f"{reason}, dtype as asked")
    if device.startswith("cuda") and torch.cuda.is_bf16_supported():
        return Placement(torch.device(device), torch.bfloat16, f"{reason}, bfloat16 is fastest")
    return Placement(torch.device(device), torch.float32, f"{reason}, float32 is exact")


def _check_device(device: str, devices: dict[str, int]) -> None:
    if not _DEVICE.fullmatch(device):
        raise SettingsError(f"--device={device!r}: expected auto, cpu, cuda, cuda:N or mps")
    kind, _, number = device.partition(":")
    if int(number or 0) >= devices[kind]:
        found = f"{devices[kind]}, counted from 0" if devices[kind] else "none"
        raise SettingsError(f"--device={device!r}: this machine has {found}; use --device='cpu'")


def processor() -> str:
    """The CPU's name and vector instructions, which decide speed."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
