"""Perplexity of a few texts with every pattern, and answers to a few questions."""

import tempfile
from pathlib import Path

import flashback
from flashback.corpus.documents import Document
from flashback.evaluation.adapted_readers import AdaptedReaders
from flashback.evaluation.arms import untrained_arms
from flashback.evaluation.evaluate import EvaluationSet, evaluate
from flashback.evaluation.frame_kind import FrameKind
from flashback.scoring.retrieved_windows import cut_and_retrieve
from flashback.scoring.window_settings import WindowSettings

PASSAGES = {
    "tides.txt": "The tides follow the moon, which pulls the water of the ocean towards it.",
    "snow.txt": "Snow falls in winter. In spring it melts, and the rivers rise.",
}
TEXT = """At the sea the water rises and falls twice a day. The moon pulls the ocean, so the tides
follow it. In the mountains the snow of the winter melts in spring; then all rivers are high, and
the sea is far away. A river does not know the moon, but where it meets the ocean it has tides, too.
"""
QUESTIONS = {"The tides follow": "the moon", "In spring, snow": "melts"}

with tempfile.TemporaryDirectory() as folder:
    texts, index = Path(folder, "texts"), Path(folder, "IDX")
    texts.mkdir()
    for name, text in PASSAGES.items():
        (texts / name).write_text(text)
    flashback.index_corpus(texts, index)

    reader = flashback.load_reader("flashback-mini")
    documents = [Document("1", "A year at the sea", TEXT)]
    retrieval = flashback.RetrievalSettings()
    windows = WindowSettings(window_tokens=256, first_boundary=16)
    retriever = flashback.BM25Index.open(index)
    (found,) = cut_and_retrieve(documents, reader, retriever, [retrieval], windows)
    examples = EvaluationSet(tuple(found.examples(reader, retrieval)), found.found, windows)
    arms = untrained_arms(["none", "prepend", "append", "slot"], [FrameKind.TEXT])
    (table,) = evaluate(arms, [examples], AdaptedReaders(lambda: reader))
    for row in table.rows:
        print(f"{row.arm.name:16} perplexity {row.perplexity.value:6.2f}")

    writer = flashback.load("flashback-mini", index, adapter=None)
    for pattern in ("none", "prepend", "slot"):
        answers = writer.generate(list(QUESTIONS), pattern=pattern, max_new_tokens=16)
        right = [a in one.text for a, one in zip(QUESTIONS.values(), answers, strict=True)]
        print(f"{pattern:16} {sum(right)} of {len(right)} answers hold what was expected")
