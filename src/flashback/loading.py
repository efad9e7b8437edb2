"""Reader, adapter, engine and index put together: the short way in."""

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import torch

from flashback.adapter import computation_of, put_on, read_card
from flashback.engines.local import LocalEngine
from flashback.engines.packed import (
    MakeProduct,
    give_single_rows,
    pack_weights,
    quantize_weights,
)
from flashback.engines.passage_store import PassageStore
from flashback.errors import FlashBackError, SettingsError
from flashback.generation import Generator
from flashback.reader import MINI, Placement, Reader, choose_placement, load_reader, shipped
from flashback.retrieval.bm25 import BM25Index
from flashback.settings import DecodeKernel, Pattern, Quantize

Choice = TypeVar("Choice", bound=StrEnum)

AUTO = "auto"
"""The adapter that ships for the reader, if there is one."""


def adapter_folder(
    model: str, adapter: str | Path | None, pattern: Pattern | None = None
) -> Path | None:
    """Which adapter folder is meant.

    Args:
        adapter: a folder, None, or `auto`.
        pattern: if given, `auto` is an adapter for this pattern or none at all.
    """
    if adapter is None or str(adapter) != AUTO:
        return None if adapter is None else Path(adapter)
    folder = shipped(f"{MINI}-adapter")
    if model != MINI or not folder.is_dir():
        return None
    return folder if pattern in (None, read_card(folder).pattern) else None


def load_adapted(
    model: str = MINI,
    adapter: str | Path | None = AUTO,
    *,
    pattern: Pattern | None = None,
    device: str = "auto",
    dtype: str = "auto",
    window: int | None = None,
    trust_remote_code: bool = False,
) -> Reader:
    """Load a reader with an adapter merged into it. See `load` and `adapter_folder`.

    Raises:
        FlashBackError: the model or the adapter is missing or unusable, or they are not a pair.
    """
    folder = adapter_folder(model, adapter, pattern)
    if folder is not None:
        read_card(folder)  # before a model is loaded, or even downloaded
    reader = load_reader(
        model, device=device, dtype=dtype, window=window, trust_remote_code=trust_remote_code
    )
    return reader if folder is None else put_on(reader, folder)


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
        from flashback.engines.one_row import loop, reads, row_product
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


def load(
    model: str = MINI,
    index: str | Path | None = None,
    *,
    adapter: str | Path | None = AUTO,
    pattern: Pattern | None = None,
    passages_from: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    window: int | None = None,
    trust_remote_code: bool = False,
    quantize: str = "none",
    decode_kernel: str = "pytorch",
) -> Generator:
    """Load a reader and open an index, ready to write.

    Args:
        model: a hub name, a folder, or `flashback-mini`, which ships with the package.
        index: an index folder made by `flashback index`; None is enough for the pattern `none`.
        adapter: a folder made by `flashback train`; `auto`: what ships for the model, if anything;
            None: the model as it is.
        pattern: what will be written with; an adapter for another pattern is then not taken by
            `auto` (with the pattern `auto`, none is). None: any adapter is, and decides.
        passages_from: a folder made by `flashback precompute`, for the pattern `slot`.
        device, dtype, window, trust_remote_code: see `load_reader`.
        quantize: `none`, or `int8`: on CPU, linear layers with 8-bit weights and inputs; faster,
            smaller, and not exact.
        decode_kernel: `pytorch`, or `numba`: on CPU, single tokens are multiplied by loops that
            numba compiles, which read whole weights faster; in float32 exact.

    Raises:
        FlashBackError: the model, the adapter, the index or the passages are missing or unusable.
    """
    quantized = named(Quantize, "--quantize", quantize)
    check_quantize(quantized, device, dtype)
    kernel = named(DecodeKernel, "--decode-kernel", decode_kernel)
    check_decode_kernel(kernel, quantized, device, dtype)
    if passages_from is not None and quantized is not Quantize.NONE:
        raise SettingsError(
            f"--quantize {quantized}: stored passages were encoded with whole weights; leave out "
            "one of --quantize and --passages-from"
        )
    store = None if passages_from is None else PassageStore.open(passages_from)
    retriever = None if index is None else BM25Index.open(index)
    reader = load_adapted(
        model,
        adapter,
        pattern=pattern,
        device=device,
        dtype=dtype,
        window=window,
        trust_remote_code=trust_remote_code,
    )
    if store is not None:
        store.check_reader(computation_of(reader.model), reader.placement.dtype_name)
    reader = for_inference(reader, quantized, kernel)
    engine = LocalEngine(reader.model, reader.window, passage_store=store)
    return Generator(reader, engine, retriever)
