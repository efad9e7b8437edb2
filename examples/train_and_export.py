"""Train an adapter that reads passages, merge it into its model, and write with the result."""

import tempfile
from pathlib import Path

import flashback
from flashback.corpus.documents import Document
from flashback.readers.adapted import load_adapted
from flashback.scoring.retrieved_windows import cut_and_retrieve
from flashback.scoring.window_settings import WindowSettings
from flashback.training.export import export
from flashback.training.run import Run
from flashback.training.train import train
from flashback.training.training_settings import TrainingSettings

PASSAGES = {
    "tides.txt": "The tides follow the moon, which pulls the water of the ocean towards it.",
    "snow.txt": "Snow falls in winter. In spring it melts, and the rivers rise.",
}
TEXT = """At the sea the water rises and falls twice a day. The moon pulls the ocean, so the tides
follow it. In the mountains the snow of the winter melts in spring; then all rivers are high, and
the sea is far away. A river does not know the moon, but where it meets the ocean it has tides, too.
"""

with tempfile.TemporaryDirectory() as folder:
    texts, index = Path(folder, "texts"), Path(folder, "IDX")
    texts.mkdir()
    for name, text in PASSAGES.items():
        (texts / name).write_text(text)
    flashback.index_corpus(texts, index)

    reader = flashback.load_reader("flashback-mini")  # without an adapter
    documents = [Document("1", "A year at the sea", TEXT)]  # what it learns to write
    retrieval = flashback.RetrievalSettings("append", stride=16)
    windows = WindowSettings(window_tokens=256, first_boundary=32)
    retriever = flashback.BM25Index.open(index)
    (found,) = cut_and_retrieve(documents, reader, retriever, [retrieval], windows)

    run = Run(TrainingSettings(steps=4, windows_per_step=1, log_steps=1), retrieval, windows)
    adapter, merged = Path(folder, "ADAPTER"), Path(folder, "MERGED")
    card = train(reader, found.examples(reader, retrieval), run, adapter)
    print("losses:", [entry["loss"] for entry in card.results["log"]])

    export(load_adapted("flashback-mini", adapter), merged)  # a model like any other

    writer = flashback.load(merged, index)
    print(writer.generate("The tides follow", max_new_tokens=16).text)
