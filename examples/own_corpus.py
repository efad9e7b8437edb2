"""Index a folder of your own texts, and write with it."""

import tempfile
from pathlib import Path

import flashback

TEXTS = {
    "tides.txt": "The tides follow the moon, which pulls the water of the ocean towards it.",
    "snow.md": "Snow falls in winter. In spring it melts, and the rivers rise.",
    "bees.md": "Bees dance to tell each other where flowers are.",
}

with tempfile.TemporaryDirectory() as folder:
    texts, index = Path(folder, "texts"), Path(folder, "IDX")
    texts.mkdir()
    for name, text in TEXTS.items():
        (texts / name).write_text(text)

    flashback.index_corpus(texts, index)  # once; an index stays on disk

    writer = flashback.load("flashback-mini", index)
    result = writer.generate("The tides of the ocean", max_new_tokens=48)

    print(result.text)
    for stride in result.strides:
        titles = ", ".join(passage.title for passage in stride.passages) or "no passage"
        print(f"{titles}: {stride.usage.reused} tokens reused, {stride.usage.prefilled} prefilled")
