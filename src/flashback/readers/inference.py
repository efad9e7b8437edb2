"""A reader's weights laid out for the processor it runs on."""

import dataclasses
from enum import StrEnum
from typing import TypeVar

import torch

from flashback.engines.kernels.packed import (
    MakeProduct,
    give_single_rows,
    pack_weights,
    quantize_weights,
)
from flashback.errors import FlashBackError, SettingsError
from flashback.readers.placement import Placement, choose_placement
from flashback.readers.reader import Reader
from flashback.settings import DecodeKernel, Quantize

Choice = TypeVar("Choice", bound=StrEnum)


def named(kind: type[Choice], flag: str, name: str) -> Choice:
    """What is meant by its name.

    Raises:
        SettingsError: an unknown name.
    """
    try:
        return kind(name)
    except ValueError:
        raise SettingsError(f"{flag} {name}: expected {' or '.join(kind)}") from None


def check_quantize(quantize: Quantize, device: str, dtype: str) -> None:
    """Refuse, before a model is loaded, to round weights where they cannot be used.

    Raises:
        SettingsError: int8 elsewhere than on CPU, or in bfloat16.
    """
    if quantize is Quantize.NONE:
        return
    placement = _on_cpu(f"--quantize {quantize}", device, dtype)
    if placement.dtype_name != "float32":
        raise SettingsError(
            f"--quantize {quantize}: computes in float32 between its layers, found "
            f"{placement.dtype_name}; leave out --dtype"
        )


def _on_cpu(option: str, device: str, dtype: str) -> Placement:
    """Where a model will run, for an option that is for CPUs only.

    Raises:
        SettingsError: elsewhere.
    """
    placement = choose_placement(device, dtype)
    if placement.device.type != "cpu":
        raise SettingsError(f"{option}: for CPUs only, found {placement.device}; use --device cpu")
    return placement


def check_decode_kernel(kernel: DecodeKernel, quantize: Quantize, device: str, dtype: str) -> None:
    """Refuse, before a model is loaded, a kernel that there is not for it.

    Raises:
        SettingsError: numba's elsewhere than on CPU, for 8-bit weights, or where PyTorch packs
            weights in another way.
        FlashBackError: numba is not installed, or does not start.
    """
    if kernel is DecodeKernel.PYTORCH:
        return
    placement = _on_cpu(f"--decode-kernel {kernel}", device, dtype)
    if quantize is not Quantize.NONE:
        raise SettingsError(
            f"--decode-kernel {kernel}: for whole weights, found --quantize {quantize}; leave out "
            "one of them"
        )
    _compiled_product(placement.dtype)


def for_inference(
    reader: Reader,
    quantize: Quantize = Quantize.NONE,
    decode_kernel: DecodeKernel = DecodeKernel.PYTORCH,
) -> Reader:
    """Lay a reader's weights out for this processor, in place; it cannot be trained afterwards.

    Args:
        reader: as it was loaded, its adapter merged.
        quantize: round the weights of linear layers, too.
        decode_kernel: what multiplies whole weights with a single token.

    Raises:
        SettingsError: this PyTorch or this processor has no 8-bit layers, or no weights that
            numba's loops can read; see also `check_decode_kernel`.
        FlashBackError: numba is not installed, or does not start.
    """
    placement = reader.placement
    check_decode_kernel(decode_kernel, quantize, str(placement.device), placement.dtype_name)
    if quantize is Quantize.NONE:
        pack_weights(reader.model)
    elif not quantize_weights(reader.model):
        raise SettingsError(
            f"--quantize {quantize}: this PyTorch has no 8-bit linear layers for this processor; "
            "leave it out"
        )
    if decode_kernel is DecodeKernel.NUMBA:
        _decode_by_numba(reader)
    placement = dataclasses.replace(placement, quantize=quantize, decode_kernel=decode_kernel)
    return dataclasses.replace(reader, placement=placement)


def _decode_by_numba(reader: Reader) -> None:
    if not give_single_rows(reader.model, _compiled_product(reader.placement.dtype)):
        raise SettingsError(
            f"--decode-kernel numba: its loops can read none of the weights of {reader.name} as "
            "PyTorch packs them; leave it out"
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
            f"--decode-kernel numba needs {error.name}; install FlashBack with the extra numba: "
            "pip install '.[numba]' in a clone of the project"
        ) from None
    except (ImportError, ValueError) as error:  # another NumPy, settings of its own
        raise FlashBackError(
            f"--decode-kernel numba: numba does not start: {str(error).splitlines()[0]}"
        ) from None
    if not reads(dtype):
        raise SettingsError(
            f"--decode-kernel numba: on this processor PyTorch packs no weights of {dtype} as "
            "numba's loops read them; leave it out"
        )
    loop(dtype)
    return row_product
