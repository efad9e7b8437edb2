"""Reader, adapter, engine and index put together: the short way in."""

from pathlib import Path

from flashback.engines.local import LocalEngine
from flashback.engines.passage_store import PassageStore
from flashback.errors import SettingsError
from flashback.readers.adapted import load_adapted
from flashback.readers.fingerprint import computation_of
from flashback.readers.inference import check_decode_kernel, check_quantize, for_inference, named
from flashback.readers.load import MINI
from flashback.readers.reader import Reader
from flashback.retrieval.bm25 import BM25Index
from flashback.settings import AUTO, DecodeKernel, Quantize
from flashback.writing.generator import Generator

_PASSAGE_SHARE = 4
"""One byte in so many of a memory budget is for passages."""


def load(
    model: str = MINI,
    index: str | Path | None = None,
    *,
    adapter: str | Path | None = AUTO,
    pattern: str | None = None,
    passages_from: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    window: int | None = None,
    trust_remote_code: bool = False,
    quantize: str = "none",
    decode_kernel: str = "pytorch",
    memory_bytes: int | None = None,
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
        memory_bytes: the budget of all caches, of which a quarter is for passages; the caches of
            many texts are then kept while others are written. None: one text's cache is kept.

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
    return Generator(reader, _engine(reader, store, memory_bytes), retriever)


def _engine(reader: Reader, store: PassageStore | None, memory_bytes: int | None) -> LocalEngine:
    if memory_bytes is None:
        return LocalEngine(reader.model, reader.window, passage_store=store)
    passages = memory_bytes // _PASSAGE_SHARE
    return LocalEngine(
        reader.model,
        reader.window,
        idle_bytes=memory_bytes - passages,
        passage_bytes=passages,
        passage_store=store,
    )
