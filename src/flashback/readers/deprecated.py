"""Deprecated names of `weights`: `quantize` and `decode_kernel`. Without PyTorch."""

from flashback.errors import SettingsError
from flashback.settings import Weights, named


def merge_weights(weights: str, quantize: str | None, decode_kernel: str | None) -> Weights:
    """The weights that are asked for by this name or by the two deprecated ones.

    Args:
        quantize: `none` or `int8`; None: not given.
        decode_kernel: `pytorch` or `numba`; None: not given.

    Raises:
        SettingsError: an unknown name, or two kinds of weights.
    """
    asked = {named("--weights", weights, list(Weights), Weights)}
    if quantize is not None and named("--quantize", quantize, ["none", "int8"]) == "int8":
        asked.add(Weights.INT8)
    kernels = ["pytorch", "numba"]
    if decode_kernel is not None and named("--decode-kernel", decode_kernel, kernels) == "numba":
        asked.add(Weights.NUMBA)
    asked.discard(Weights.FULL)
    if len(asked) > 1:
        raise SettingsError(f"--weights {' and '.join(sorted(asked))}: expected one of them")
    return asked.pop() if asked else Weights.FULL
