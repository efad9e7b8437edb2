"""Load a reader, its adapter, an engine and an index in one call."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flashback.declared import AUTO, CheckedSettings, Registry, check_number, check_type, named
from flashback.engines.llama_cpp import LlamaEngine
from flashback.engines.llama_library import LlamaModel, library
from flashback.engines.local import LocalEngine
from flashback.engines.openai import OpenAIEngine
from flashback.engines.openai_probe import probe
from flashback.engines.openai_settings import RemoteSettings
from flashback.engines.openai_slot import RemoteSlot
from flashback.engines.openai_wire import Wire
from flashback.engines.protocol import Engine
from flashback.errors import FlashBackWarning, SettingsError
from flashback.readers.adapted import load_adapted
from flashback.readers.elsewhere import load_text_reader, sample_of, window_elsewhere
from flashback.readers.gguf_reader import check_llama, load_gguf_reader
from flashback.readers.inference import check_weights, for_inference
from flashback.readers.load import MINI
from flashback.readers.old_weights import weights_of
from flashback.readers.passages import unseen_note
from flashback.readers.reader import Reader
from flashback.readers.text_reader import TextReader
from flashback.readers.weight_settings import Weights
from flashback.retrieval.frameworks import retriever_of
from flashback.retrieval.fusion import FusedRetriever, FusionSettings
from flashback.retrieval.guard import GuardSettings, LimitedRetriever
from flashback.retrieval.kinds import open_index
from flashback.retrieval.protocol import Retriever, Sampled
from flashback.retrieval.rerank import READER, RerankSettings, reranked
from flashback.retrieval.specs import open_retriever
from flashback.scoring.reader_reranker import ReaderReranker
from flashback.settings import PATTERNS, RetrievalSettings
from flashback.writing.generator import Generator


@dataclass(frozen=True)
class LoadOptions(CheckedSettings):
    """Which model an engine runs, and how. See `load` for the fields."""

    model: str = MINI
    adapter: str | Path | None = AUTO
    pattern: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    window: int | None = None
    trust_remote_code: bool = False
    weights: Weights = Weights.FULL
    memory_bytes: int | None = None
    remote: RemoteSettings | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern is not None:
            named("--pattern", self.pattern, [AUTO, *PATTERNS])
        check_weights(self.weights, self.device, self.dtype)
        if self.memory_bytes is not None:
            check_number("memory_bytes", self.memory_bytes, 0, 1 << 50)

    def check_elsewhere(self, engine: str) -> None:
        """Refuse what decides how a model runs in this process.

        Raises:
            SettingsError: naming the first of them.
        """
        for name, default in _HERE.items():
            if (found := getattr(self, name)) != default and found is not None:
                raise SettingsError(
                    f"--{name}={str(found)!r}: with --engine={engine!r} the server decides that; "
                    "leave it out"
                )


_HERE = {"adapter": AUTO, "device": "auto", "dtype": "auto", "weights": Weights.FULL}
"""Options, and their defaults, of a model in this process."""

OpenEngine = Callable[[LoadOptions], tuple[TextReader, Engine]]

ENGINES: Registry[OpenEngine] = Registry("engine")
"""By name: loads a reader and the engine that runs it. A new engine is a file and a line here."""


def open_local(options: LoadOptions) -> tuple[TextReader, LocalEngine]:
    """A transformers model in this process.

    Raises:
        FlashBackError: the model or the adapter is missing or unusable.
    """
    reader = load_adapted(
        options.model,
        options.adapter,
        pattern=options.pattern,
        device=options.device,
        dtype=options.dtype,
        window=options.window,
        trust_remote_code=options.trust_remote_code,
    )
    reader = for_inference(reader, options.weights)
    if options.memory_bytes is None:
        return reader, LocalEngine(reader.model, reader.window)
    memory = options.memory_bytes
    return reader, LocalEngine(reader.model, reader.window, idle_sequences=None, cache_bytes=memory)


def open_llama(options: LoadOptions) -> tuple[TextReader, LlamaEngine]:
    """A GGUF file, run by llama.cpp in this process, with its tokenizer here.

    Raises:
        SettingsError: something is asked for that a GGUF file or llama.cpp does not have.
        FlashBackError: llama-cpp-python is not installed, or the file cannot be read.
    """
    check_llama(options.adapter, options.weights, options.dtype)
    with_gpu = bool(library().llama_supports_gpu_offload())
    if options.device not in ("auto", "cpu") and not with_gpu:
        raise SettingsError(
            f"--device={options.device!r}: this build of llama.cpp runs on CPUs only; use "
            "--device='cpu'"
        )
    reader, file = load_gguf_reader(options.model, options.window)
    exact = options.dtype == "float32" or file.is_float32
    model = LlamaModel(str(file.path), options.model, gpu=options.device != "cpu")
    threads = torch.get_num_threads()
    memory = options.memory_bytes
    engine = LlamaEngine(model, reader.window, exact=exact, threads=threads, cache_bytes=memory)
    kept = "float32" if exact else "float16"
    place = f"llama.cpp, keys and values in {kept}, {threads} threads"
    return replace(reader, place=place), engine


def open_openai(options: LoadOptions) -> tuple[TextReader, OpenAIEngine]:
    """A model behind an OpenAI-compatible server, with its tokenizer here.

    Raises:
        SettingsError: what is asked for is the server's affair, or its address is missing.
        FlashBackError: the tokenizer is unusable, or the server cannot do what is needed.
    """
    remote = options.remote or RemoteSettings()
    options.check_elsewhere("openai")
    if not remote.base_url:
        raise SettingsError("--engine='openai': give the server's --base-url")
    wire = Wire(remote)
    tokenizer = remote.tokenizer or options.model
    reader = load_text_reader(options.model, tokenizer, trust_remote_code=options.trust_remote_code)
    found = probe(wire, options.model, sample_of(tokenizer, reader.tokenizer))
    for note in found.notes:
        warnings.warn(note, FlashBackWarning, stacklevel=4)
    window, reason = window_elsewhere(tokenizer, found.window, options.window)
    reader = replace(reader, window=window, window_reason=reason, place=f"behind {wire.address}")
    slot = None
    if found.slot_block:
        slot = RemoteSlot(wire, options.model, found.slot_block, found.slot_passages)
    return reader, OpenAIEngine(wire, options.model, window, slot)


ENGINES.register("local", open_local)
ENGINES.register("llama.cpp", open_llama)
ENGINES.register("openai", open_openai)


def load(
    model: str | Path = MINI,
    index: str | Path | Sequence[str | Path] | None = None,
    *,
    retriever: object | None = None,
    guard: GuardSettings | None = None,
    fusion: FusionSettings | None = None,
    rerank: RerankSettings | None = None,
    engine: str = "local",
    remote: RemoteSettings | None = None,
    adapter: str | Path | None = AUTO,
    pattern: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    window: int | None = None,
    trust_remote_code: bool = False,
    weights: str = Weights.FULL,
    memory_bytes: int | None = None,
    passage_tokens: int = RetrievalSettings.passage_tokens,
    quantize: str | None = None,
    decode_kernel: str | None = None,
) -> Generator:
    """Load a reader and open an index, ready to write.

    Args:
        model: a hub name, a folder, a GGUF file, or a name that `flashback models` lists.
        index: a folder made by `flashback index`, or several; None is enough for pattern `none`.
        retriever: instead, or a list beside it: what `retriever_of` takes, or a SPEC; all are one.
        guard, fusion, rerank: a search's limits, what several count, what ranks hits anew; or None.
        engine, remote: `local`: transformers; `llama.cpp`: a GGUF file; `openai`: a server.
        adapter: a folder, or the name of one that ships; `auto`: what ships for it; None: none.
        pattern: what will be written with, and which adapter `auto` may take; None: any.
        device, dtype, window, trust_remote_code, weights: see `load_reader` and `Weights`.
        memory_bytes: of kept keys and values; None: one text's, and 256 MiB of passages'.
        passage_tokens: m; a warning says how many passages are longer.

    Raises:
        FlashBackError: an argument is wrong, or what it names is unusable.
    """
    opener = ENGINES[named("--engine", engine, list(ENGINES))]
    options = LoadOptions(
        str(model) if isinstance(model, Path) else model,
        *(adapter, pattern, device, dtype, window, trust_remote_code),
        *(_weights(weights, quantize, decode_kernel), memory_bytes, remote),
    )
    found = _retriever(index, retriever, fusion or FusionSettings())
    reader, opened = opener(options)
    _warn(reader, pattern, found.sample() if isinstance(found, Sampled) else [], passage_tokens)
    found = _reranked(found, rerank, reader, passage_tokens)
    return Generator(reader, opened, _guarded(found, guard))


def _retriever(
    index: str | Path | Sequence[str | Path] | None, retriever: object, fusion: FusionSettings
) -> Retriever | None:
    """What is searched; several are one."""
    check_type("index", index, str | Path | Sequence | None)
    if index is not None and retriever is not None and not isinstance(retriever, list):
        raise SettingsError("index and retriever: expected one of them, found both")
    folders = [index] if isinstance(index, str | Path) else index or []
    others = retriever if isinstance(retriever, list) else [retriever]
    parts = [*map(open_index, folders), *(_opened(one) for one in others if one is not None)]
    fusion.weights(len(parts))
    return FusedRetriever(parts, fusion) if len(parts) > 1 else next(iter(parts), None)


def _opened(retriever: object) -> Retriever:
    return open_retriever(retriever) if isinstance(retriever, str) else retriever_of(retriever)


def _guarded(retriever: Retriever | None, guard: GuardSettings | None) -> Retriever | None:
    if retriever is None or guard is None:
        return retriever
    return LimitedRetriever(retriever, guard)


def _reranked(
    found: Retriever | None, rerank: RerankSettings | None, reader: TextReader, passage_tokens: int
) -> Retriever | None:
    """With what ranks anew in front of it."""
    if found is None or rerank is None:
        return found
    if rerank.reranker != READER:
        return reranked(found, rerank)
    if not isinstance(reader, Reader):
        raise SettingsError("--reranker='reader': this engine runs its reader elsewhere")
    return reranked(found, rerank, ReaderReranker(reader, passage_tokens))


def _warn(
    reader: TextReader, pattern: str | None, sample: Sequence[str], passage_tokens: int
) -> None:
    """Say what a user should know about a reader, and about passages shown to it."""
    if pattern is not None and (note := reader.untrained_for(pattern)):
        warnings.warn(note, FlashBackWarning, stacklevel=3)
    if note := unseen_note(reader, sample, passage_tokens):
        warnings.warn(note, FlashBackWarning, stacklevel=3)


def _weights(weights: str, quantize: str | None, decode_kernel: str | None) -> Weights:
    """The weights asked for; warns of the names before version 0.2."""
    found = weights_of(weights, quantize, decode_kernel)
    for name, value in (("quantize", quantize), ("decode_kernel", decode_kernel)):
        if value is not None:
            warnings.warn(
                f"load({name}=...) is deprecated; use weights={str(found)!r}",
                DeprecationWarning,
                stacklevel=3,
            )
    return found
