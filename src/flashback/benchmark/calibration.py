"""The two ceilings as a reader's own passes reach them: what predictions are made from."""

import itertools
import statistics
import time

from flashback.benchmark.ceilings import Ceilings
from flashback.benchmark.flops import Pass, Shape, pass_bytes, pass_operations
from flashback.benchmark.timed import TimedEngine
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
    """Bandwidth from decode steps behind `length` tokens, matrix rate from encoding them.

    Medians of several, in turns, so that a machine whose speed drifts treats both alike; launches,
    choosing and all.

    Args:
        fixed_passes: see `LocalEngine`.
    """
    encode: list[float] = []
    decode: list[float] = []
    engine = TimedEngine(reader, itertools.repeat(0), rows=batch, fixed_passes=fixed_passes)
    for _ in range(_REPEATS):
        engine.forget()
        sampler = Sampler(SamplingSettings(), (0,))
        tokens = min(1 + _DECODE_STEPS, reader.window - length)
        completion = engine.complete(Prompt.plain((0,) * length), tokens, sampler)
        ends = [time.perf_counter() for _ in completion]
        encode.append(completion.usage.prefill_seconds)
        decode += [ended - began for began, ended in itertools.pairwise(ends)]
    step, prefill = Pass(1, length, batch=batch), Pass(length, 0, 1, batch)
    return Ceilings(
        pass_bytes(shape, step) / statistics.median(decode),
        pass_operations(shape, prefill) / statistics.median(encode),
    )
