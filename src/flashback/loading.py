"""Reader, adapter, engine and index put together: the short way in."""

from pathlib import Path

from flashback.engines.local import LocalEngine
from flashback.readers.adapted import AUTO, load_adapted
from flashback.readers.inference import check_decode_kernel, check_quantize, for_inference, named
from flashback.readers.load import MINI
from flashback.retrieval.bm25 import BM25Index
from flashback.settings import DecodeKernel, Pattern, Quantize
from flashback.writing.generator import Generator


def load(
    model: str = MINI,
    index: str | Path | None = None,
    *,
    adapter: str | Path | None = AUTO,
    pattern: Pattern | None = None,
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
        device, dtype, window, trust_remote_code: see `load_reader`.
        quantize: `none`, or `int8`: on CPU, linear layers with 8-bit weights and inputs; faster,
            smaller, and not exact.
        decode_kernel: `pytorch`, or `numba`: on CPU, single tokens are multiplied by loops that
            numba compiles, which read whole weights faster; in float32 exact.

    Raises:
        FlashBackError: the model, the adapter or the index is missing or unusable.
    """
    quantized = named(Quantize, "--quantize", quantize)
    check_quantize(quantized, device, dtype)
    kernel = named(DecodeKernel, "--decode-kernel", decode_kernel)
    check_decode_kernel(kernel, quantized, device, dtype)
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
    reader = for_inference(reader, quantized, kernel)
    return Generator(reader, LocalEngine(reader.model, reader.window), retriever)
