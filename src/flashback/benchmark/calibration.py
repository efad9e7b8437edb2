"""The two ceilings as a reader's own passes reach them: predictions are made from these."""

import itertools
import statistics
import time

from flashback.benchmark.ceilings import Ceilings
from flashback.benchmark.flops import Shape, pass_bytes, pass_operations
from flashback.benchmark.timed import TimedEngine
from flashback.engines.self_check import fastest_step
from flashback.patterns.cost import Pass
from flashback.patterns.prompt import Prompt
from flashback.readers.reader import Reader
from flashback.sampling import Sampler
from flashback.settings import SamplingSettings

_REPEATS = 5
_DECODE_STEPS = 8
"""Of each repeat; on CUDA the first ones are recorded."""


def calibrate(
    reader: Reader, shape: Shape, length: int, batch: int = 1, fixed_passes: bool | None = None
) -> Ceilings:
    """Bandwidth from decode steps behind `length` tokens, matrix rate from prefilling them.

    Medians of several, in turns, so that a machine whose speed drifts treats both alike; launches
    and sampling included.

    Args:
        fixed_passes: see `LocalEngine`.
    """
    prefills: list[float] = []
    steps: list[float] = []
    engine = TimedEngine(
        reader,
        itertools.repeat(0),
        rows=batch,
        fixed_passes=fixed_passes,
        step=fastest_step(reader.model),
    )
    for _ in range(_REPEATS):
        engine.forget()
        sampler = Sampler(SamplingSettings(), (0,))
        tokens = min(1 + _DECODE_STEPS, reader.window - length)
        completion = engine.complete(Prompt.plain((0,) * length), tokens, sampler)
        ends = [time.perf_counter() for _ in completion]
        prefills.append(completion.usage.prefill_seconds)
        steps += [ended - began for began, ended in itertools.pairwise(ends)]
    step, prefill = Pass(1, length, batch=batch), Pass(length, 0, 1, batch)
    return Ceilings(
        pass_bytes(shape, step) / statistics.median(steps),
        pass_operations(shape, prefill) / statistics.median(prefills),
    )
