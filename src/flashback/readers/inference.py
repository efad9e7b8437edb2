"""A reader's weights laid out for the processor it runs on, for inference or for training."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import Tensor, nn

from flashback.engines.kernels.choice import Choose, Chooser, always
from flashback.engines.kernels.frozen import FrozenWeights
from flashback.engines.kernels.linear import lay_out, quantize_weights
from flashback.engines.kernels.products import (
    COMPILED,
    COMPILED8,
    INT8,
    LAYOUT_OF,
    PACKED,
    PLAIN,
    Kept,
    MakeRows,
    PackedProduct,
    Product,
    rounded,
)
from flashback.errors import FlashBackError, SettingsError
from flashback.readers.placement import choose_placement, processor
from flashback.readers.reader import Reader
from flashback.readers.weight_settings import Weights
from flashback.version import __version__

_LOG = logging.getLogger(__name__)
_PRODUCTS = {
    Weights.FULL: (PACKED, PLAIN, COMPILED),
    Weights.NUMBA: (PACKED, COMPILED),
    Weights.INT8: (INT8, COMPILED8),
}
"""The products to choose from; the first is that of small weights."""
_MakeProduct = Callable[[Tensor, Tensor, Tensor | None], Product | None]
"""From a packed weight, the plain one (O, I) and its bias (O,)."""
LARGE = 1 << 25
"""Parameters of a model that is worth the start of numba: a second."""


def check_weights(weights: Weights, device: str, dtype: str) -> None:
    """Refuse weights that there are not for a device and dtype, before a model is loaded.

    Raises:
        SettingsError: int8 or numba elsewhere than on CPU, int8 in bfloat16, or numba where PyTorch
            packs weights in another way.
        FlashBackError: numba is not installed, or does not start.
    """
    if weights is Weights.FULL:
        return
    placement = choose_placement(device, dtype)
    if placement.device.type != "cpu":
        raise SettingsError(
            f"--weights='{weights}': for CPUs only, found {placement.device}; use --device='cpu'"
        )
    if weights is Weights.NUMBA:
        _compiled_product(placement.dtype)
    elif placement.dtype is not torch.float32:
        raise SettingsError(
            f"--weights='{weights}': computes in float32 between its layers, found "
            f"{placement.dtype_name}; leave out --dtype"
        )


def for_inference(
    reader: Reader, weights: Weights = Weights.FULL, choose: Choose | None = None
) -> Reader:
    """Lay a reader's weights out for this processor, in place; it cannot be trained afterwards.

    Args:
        reader: as it was loaded, its adapter merged.
        weights: which layouts there are to choose from.
        choose: the products of every layer; None: the fastest, see `choice.py`.

    Raises:
        SettingsError: this PyTorch or this processor has no 8-bit layers, or packs no weights that
            numba's loops read; see also `check_weights`.
        FlashBackError: numba is not installed, or does not start.
    """
    check_weights(weights, str(reader.placement.device), reader.placement.dtype_name)
    if reader.placement.device.type != "cpu":
        return reader
    compiled = _compiled(reader, weights)
    names = [name for name in _PRODUCTS[weights] if compiled or name not in LAYOUT_OF]
    chooser = Chooser(names, *_kept(), compiled)
    choose = choose or (always(COMPILED) if weights is Weights.NUMBA else chooser)
    if weights is Weights.INT8:
        _quantize(reader, choose, compiled)
    else:
        lay_out(reader.model, choose, compiled)
    if compiled is not None and weights is Weights.NUMBA and compiled.none:
        raise SettingsError(
            f"--weights='numba': its loops can read none of the weights of {reader.name} as "
            "PyTorch packs them; use --weights='full'"
        )
    chooser.keep()
    products = tuple(f"{shape} {choice}" for shape, choice in chooser.chosen.items())
    spent = f"measured in {chooser.seconds:.1f} s" if chooser.seconds else "measured before"
    _LOG.info("%s: products of weights, %s: %s", reader.name, spent, ", ".join(products) or "none")
    placement = dataclasses.replace(reader.placement, weights=weights, products=products)
    return dataclasses.replace(reader, placement=placement)


def for_training(model: nn.Module) -> FrozenWeights:
    """Lay frozen weights out for both passes of a training, where that is faster; see `packed`.

    Args:
        model: with the parameters that are trained, such as a PEFT model.
    """
    chooser = Chooser((PLAIN, PACKED), *_kept())
    frozen = FrozenWeights(model, chooser.of_many)
    chooser.keep()
    return frozen


def _compiled(reader: Reader, weights: Weights) -> "_Compiled | None":
    """What makes numba's loops; None: they are not worth their start, or not installed."""
    dtype = reader.placement.dtype
    if weights is Weights.NUMBA:
        return _Compiled(_compiled_product(dtype))
    if sum(one.numel() for one in reader.model.parameters()) < LARGE:
        return None
    with contextlib.suppress(FlashBackError):
        return _Compiled(_compiled_product(dtype))
    return None


def _kept() -> tuple[Path, str]:
    """Where measured times are kept, and what they depend on but shapes."""
    machine = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return user_cache_path("flashback") / "products.json", f"{machine}, flashback {__version__}"


class _Compiled:
    """Makes numba's products of single rows, and knows whether there was any."""

    def __init__(self, make: _MakeProduct) -> None:
        """Take what makes those that read packed weights."""
        self._make = make
        self._asked = self._made = False

    @property
    def none(self) -> bool:
        """Whether products were asked for in vain."""
        return self._asked and not self._made

    def __call__(
        self, name: str, beside: Kept, weight: Tensor, bias: Tensor | None
    ) -> Product | None:
        if name == COMPILED8:
            from flashback.engines.kernels.one_row import rounded_product

            return rounded_product(*rounded(weight), bias)
        product = (
            self._make(beside.memory, weight, bias) if isinstance(beside, PackedProduct) else None
        )
        self._asked, self._made = True, self._made or product is not None
        return product


def _quantize(reader: Reader, choose: Choose, compiled: MakeRows | None) -> None:
    if not quantize_weights(reader.model, choose, compiled):
        raise SettingsError(
            "--weights='int8': this PyTorch has no 8-bit linear layers for this processor; use "
            "--weights='full'"
        )


def _compiled_product(
    dtype: torch.dtype,
) -> Callable[[Tensor, Tensor, Tensor | None], Product | None]:
    """Products of one row by numba's loops, compiled for a dtype.

    Raises:
        SettingsError: they could not read such weights on this processor.
        FlashBackError: numba is not installed, or does not start.
    """
    try:
        from flashback.engines.kernels.loops import product_loop
        from flashback.engines.kernels.one_row import reads, row_product
    except ModuleNotFoundError as error:
        raise FlashBackError(
            f"--weights='numba' needs {error.name}; install FlashBack with the extra numba: "
            "pip install '.[numba]' in a clone of the project"
        ) from None
    except (ImportError, ValueError) as error:  # another NumPy, settings of its own
        raise FlashBackError(
            f"--weights='numba': numba does not start: {str(error).splitlines()[0]}"
        ) from None
    if not reads(dtype):
        raise SettingsError(
            f"--weights='numba': on this processor PyTorch packs no weights of {dtype} as numba's "
            "loops read them; use --weights='full'"
        )
    product_loop(torch.uint32 if dtype is torch.bfloat16 else dtype)
    return row_product
