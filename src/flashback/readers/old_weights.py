"""The weights that `weights` and its two names before version 0.2 ask for. Without PyTorch."""

from flashback.declared import named
from flashback.errors import SettingsError
from flashback.readers.weight_settings import Weights

_QUANTIZE = {"none": Weights.FULL, "int8": Weights.INT8}
_DECODE_KERNEL = {"pytorch": Weights.FULL, "numba": Weights.NUMBA}


def weights_of(weights: str, quantize: str | None, decode_kernel: str | None) -> Weights:
    """The one kind of weights that all three ask for; None and the defaults ask for nothing.

    Args:
        weights: one of `Weights`.
        quantize: deprecated: `none` or `int8`.
        decode_kernel: deprecated: `pytorch` or `numba`.

    Raises:
        SettingsError: an unknown name, or two of them ask for different weights.
    """
    found: Weights = named("--weights", weights, list(Weights), Weights)
    asked = {found}
    if quantize is not None:
        asked.add(_QUANTIZE[named("--quantize", quantize, list(_QUANTIZE))])
    if decode_kernel is not None:
        asked.add(_DECODE_KERNEL[named("--decode-kernel", decode_kernel, list(_DECODE_KERNEL))])
    asked.discard(Weights.FULL)
    if len(asked) > 1:
        raise SettingsError(f"--weights: expected one of them, found {' and '.join(sorted(asked))}")
    return asked.pop() if asked else Weights.FULL
