"""llama.cpp beside `flashback bench engine`: prefill of a context, and a decode step behind it.

`pip install llama-cpp-python` builds it in minutes; then
`python scripts/llama_cpp_decode.py FILE.gguf [FILE.gguf …] [--context 1000] [--threads 2]`.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

_STEPS = 192


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description="Time llama.cpp's prefill and decode steps.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--context", type=int, default=1000, help="tokens before the first step")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    llama_cpp.llama_backend_init()
    for path in arguments.files:
        model, context = _loaded(path, arguments.context + _STEPS, arguments.threads)
        ids = _random_ids(model, arguments.context + _STEPS)
        prefill = _decoded(context, ids[: arguments.context], 0)
        steps = [
            _decoded(context, ids[at : at + 1], at) for at in range(arguments.context, len(ids))
        ]
        step = 1e3 * statistics.median(steps)
        print(f"{path.name}: prefill {prefill:.2f} s, a step {step:.1f} ms (median)")
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def _loaded(path: Path, positions: int, threads: int) -> tuple[Any, Any]:
    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    if not model:
        raise SystemExit(f"{path}: llama.cpp cannot read it")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = positions
    settings.n_threads = settings.n_threads_batch = threads
    return model, llama_cpp.llama_init_from_model(model, settings)


def _random_ids(model: Any, count: int) -> list[int]:
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    ids: list[int] = np.random.default_rng(0).integers(300, size, count).tolist()
    return ids


def _decoded(context: Any, ids: list[int], first: int) -> float:
    """The seconds of a pass over some tokens, with the logits of the last one."""
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for at, one in enumerate(ids):
        batch.token[at], batch.pos[at] = one, first + at
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
        batch.logits[at] = at == len(ids) - 1
    started = time.perf_counter()
    if llama_cpp.llama_decode(context, batch):
        raise SystemExit("llama.cpp cannot decode: the context does not fit")
    llama_cpp.llama_get_logits_ith(context, -1)[0]
    seconds = time.perf_counter() - started
    llama_cpp.llama_batch_free(batch)
    return seconds


if __name__ == "__main__":
    main()
