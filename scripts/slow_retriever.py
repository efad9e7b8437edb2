"""How much of a slow search a lookahead hides: the reader decodes on while it runs.

    python scripts/slow_retriever.py [--shape opt-125m] [--milliseconds 50] [--lookahead 8]

The same text is written with a retriever that answers at once and with one that takes its time,
without and with a lookahead, in turns. A search's hidden share is 1 less the time that the text
waited for it, of what it takes.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

from flashback.benchmark.material import RandomPassages
from flashback.benchmark.shapes import shaped_reader
from flashback.engines.local import LocalEngine
from flashback.readers.inference import for_inference
from flashback.retrieval.protocol import Hit, Retriever
from flashback.settings import RetrievalSettings, SearchOptions, Settings, StoppingSettings
from flashback.writing.generator import Generator

_TOKENS = 256
_PROMPT = "The tides follow the moon. " * 60


class Slow:
    """A retriever that takes so many seconds."""

    def __init__(self, retriever: Retriever, seconds: float) -> None:
        """Slow a retriever down."""
        self._retriever, self._seconds = retriever, seconds

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`."""
        time.sleep(self._seconds)
        return self._retriever.search(queries, options)


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description="What a lookahead hides of a slow search.")
    parser.add_argument("--shape", default="opt-125m")
    parser.add_argument("--milliseconds", type=float, default=50)
    parser.add_argument("--lookahead", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    reader = for_inference(shaped_reader(given.shape, dtype="float32", real_text=True))
    engine = LocalEngine(reader.model, reader.window)
    passages = RandomPassages(reader, RetrievalSettings.passage_tokens)
    seconds = given.milliseconds / 1e3
    ways: dict[str, tuple[Retriever, int]] = {
        "at once": (passages, 0),
        "slow": (Slow(passages, seconds), 0),
        f"slow, lookahead {given.lookahead}": (Slow(passages, seconds), given.lookahead),
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(given.repeats + 1):
        for name, (retriever, lookahead) in ways.items():
            engine.forget()
            retrieval = RetrievalSettings(lookahead=lookahead)
            stopping = StoppingSettings(_TOKENS, ignore_eos=True)
            writer = Generator(reader, engine, retriever)
            text = writer.generate(_PROMPT, Settings(retrieval, stopping=stopping))
            later = text.strides[1:]  # the first has nothing to be hidden behind
            waited = sum(stride.retrieve_seconds for stride in later) / len(later)
            measured[name].append((text.seconds, waited))
    for name, runs in measured.items():
        total, waited = (statistics.median(one) for one in zip(*runs[1:], strict=True))
        hidden = f", hidden {1 - waited / seconds:.0%}" if name != "at once" else ""
        print(f"{name}: {total:.2f} s, waited {1e3 * waited:.1f} ms a stride{hidden}")


if __name__ == "__main__":
    main()
