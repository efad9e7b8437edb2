"""How a reader's weights are kept and multiplied. Without PyTorch."""

from enum import StrEnum


class Weights(StrEnum):
    """How a reader's weights are kept and multiplied."""

    FULL = "full"
    """As loaded; on CPU multiplied as is fastest for each shape, measured when they are loaded."""
    NUMBA = "numba"
    """The same, but single tokens by loops that numba compiles, whatever is fastest; on CPU."""
    INT8 = "int8"
    """Linear layers with 8-bit weights, and inputs if there are several rows; on CPU, not exact."""
