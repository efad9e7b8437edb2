"""A reader's weights laid out for the processor it runs on."""

import dataclasses

import torch

from flashback.engines.kernels.packed import (
    MakeProduct,
    give_single_rows,
    pack_weights,
    quantize_weights,
)
from flashback.errors import FlashBackError, SettingsError
from flashback.readers.placement import choose_placement
from flashback.readers.reader import Reader
from flashback.settings import Weights


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
            f"--weights {weights}: for CPUs only, found {placement.device}; use --device cpu"
        )
    if weights is Weights.NUMBA:
        _compiled_product(placement.dtype)
    elif placement.dtype is not torch.float32:
        raise SettingsError(
            f"--weights {weights}: computes in float32 between its layers, found "
            f"{placement.dtype_name}; leave out --dtype"
        )


def for_inference(reader: Reader, weights: Weights = Weights.FULL) -> Reader:
    """Lay a reader's weights out for this processor, in place; it cannot be trained afterwards.

    Args:
        reader: as it was loaded, its adapter merged.
        weights: the layout.

    Raises:
        SettingsError: this PyTorch or this processor has no 8-bit layers, or packs no weights that
            numba's loops read; see also `check_weights`.
        FlashBackError: numba is not installed, or does not start.
    """
    check_weights(weights, str(reader.placement.device), reader.placement.dtype_name)
    if weights is Weights.INT8:
        _quantize(reader)
    else:
        pack_weights(reader.model)
    if weights is Weights.NUMBA:
        _multiply_single_rows(reader)
    placement = dataclasses.replace(reader.placement, weights=weights)
    return dataclasses.replace(reader, placement=placement)


def _quantize(reader: Reader) -> None:
    if not quantize_weights(reader.model):
        raise SettingsError(
            "--weights int8: this PyTorch has no 8-bit linear layers for this processor; use "
            "--weights full"
        )


def _multiply_single_rows(reader: Reader) -> None:
    if not give_single_rows(reader.model, _compiled_product(reader.placement.dtype)):
        raise SettingsError(
            f"--weights numba: its loops can read none of the weights of {reader.name} as PyTorch "
            "packs them; use --weights full"
        )


def _compiled_product(dtype: torch.dtype) -> MakeProduct:
    """Products of one row by numba's loops, compiled for a dtype.

    Raises:
        SettingsError: they could not read such weights on this processor.
        FlashBackError: numba is not installed, or does not start.
    """
    try:
        from flashback.engines.kernels.one_row import loop, reads, row_product
    except ModuleNotFoundError as error:
        raise FlashBackError(
            f"--weights numba needs {error.name}; install FlashBack with the extra numba: "
            "pip install '.[numba]' in a clone of the project"
        ) from None
    except (ImportError, ValueError) as error:  # another NumPy, settings of its own
        raise FlashBackError(
            f"--weights numba: numba does not start: {str(error).splitlines()[0]}"
        ) from None
    if not reads(dtype):
        raise SettingsError(
            f"--weights numba: on this processor PyTorch packs no weights of {dtype} as numba's "
            "loops read them; use --weights full"
        )
    loop(dtype)
    return row_product
