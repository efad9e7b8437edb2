"""A run-time test as plain data, for `--json` and for whoever writes tables from it."""

import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flashback.benchmark.results import Measured, Results
from flashback.benchmark.runtime import Runtime
from flashback.version import versions


def runtime_record(machine: Runtime, results: Results) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    arms = machine.arms
    return {
        "shape": machine.reader.name,
        **measured_on(machine.reader.placement.device),
        "dtype": machine.reader.placement.dtype_name,
        "batch": machine.settings.batch_size,
        "text": machine.material.name,
        "settings": asdict(machine.settings) | {"arms": arms},
        "ceilings": asdict(machine.ceilings),
        "calibrated": asdict(machine.calibrated),
        "tokens": len(machine.lengths) * machine.settings.stride,
        "rows": [_row(row) for row in results.rows],
        "seconds": {arm: results.seconds(arm) for arm in arms},
        "encode_seconds": {arm: results.encode_seconds(arm) for arm in arms},
        "spread": {arm: results.spread(arm) for arm in arms},
        "bound_share": {arm: results.bound_share(arm) for arm in arms},
        "decode_bound_share": {arm: results.decode_bound_share(arm) for arm in arms},
        "predicted_share": {arm: results.predicted_share(arm) for arm in arms},
        "boundary_growth": {
            "from": machine.lengths[1],
            "to": machine.lengths[-1],
            **{arm: results.growth(arm) for arm in arms},
        },
        "ratios": results.ratios(),
        "ratio_ranges": results.ratio_ranges(),
        **(_retrieval(machine, results) if machine.material.is_real else {}),
    }


def _row(row: Measured) -> dict[str, Any]:
    return {
        "pattern": row.arm,
        "length": row.length,
        "stride_seconds": row.stride_seconds,
        "encode_seconds": row.encode_seconds,
        "decode_seconds": row.decode_seconds,
        "retrieve_seconds": row.retrieve_seconds,
        "spread": row.spread,
        "bound_share": row.bound_share,
        "predicted_seconds": row.predicted_seconds,
        "passage_tokens": row.passage_tokens,
        "passage_unchanged": row.unchanged,
        "passage_kept": row.kept,
    }


def _retrieval(machine: Runtime, results: Results) -> dict[str, Any]:
    """What searching cost, and how often it found something else."""
    retrieving = [arm for arm in machine.arms if arm != "none"]
    if not retrieving:
        return {}
    own = results.of(retrieving[0])
    seconds = sorted(row.retrieve_seconds for row in own)
    slots = [arm for arm in machine.arms if arm.startswith("slot")]
    return {
        "retrieval": {
            "p50_seconds": statistics.median(seconds),
            "p95_seconds": statistics.quantiles(seconds, n=20)[-1],
            "passage_tokens": statistics.fmean(row.passage_tokens for row in own),
            "unchanged_share": results.unchanged_share(retrieving[0]),
        },
        "passage_cache": {arm: _passage_cache(results.of(arm)) for arm in slots},
    }


def _passage_cache(rows: Sequence[Measured]) -> dict[str, int]:
    """What became of a slot's passages, stride by stride."""
    return {
        "unchanged": sum(row.unchanged for row in rows),
        "kept": sum(row.kept for row in rows),
        "encoded": sum(row.encodes_passage for row in rows),
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
    """What the processor calls itself; a CPU's with its vector instructions, which decide speed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
