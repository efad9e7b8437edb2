"""The machine that a benchmark runs on: its name, its threads, the versions installed."""

from dataclasses import asdict
from typing import Any

import torch

from flashback.declared import CheckedSettings
from flashback.readers.placement import processor
from flashback.readers.reader import Reader
from flashback.version import versions


def described(reader: Reader, settings: CheckedSettings) -> dict[str, Any]:
    """The model, the settings and the machine, for the record of a benchmark of one reader."""
    placement = reader.placement
    return {
        "shape": reader.name,
        **measured_on(placement.device),
        "dtype": placement.dtype_name,
        "products": list(placement.products),
        "settings": asdict(settings),  # type: ignore[call-overload]
    }


def measured_on(device: torch.device) -> dict[str, Any]:
    """The machine and the versions, for every benchmark's record."""
    return {
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def device_name(device: torch.device) -> str:
    """The processor's own name; a CPU's with its vector instructions, which decide speed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()
