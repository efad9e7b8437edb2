"""A retriever of your own: any object with a method `search`."""

from collections.abc import Sequence

import flashback

TEXTS = {
    "tides": "The tides follow the moon, which pulls the water of the ocean towards it.",
    "snow": "Snow falls in winter. In spring it melts, and the rivers rise.",
    "bees": "Bees dance to tell each other where flowers are.",
}


class SharedWords:
    """Finds the texts that share the most words with a query."""

    def search(
        self, queries: Sequence[str], options: flashback.SearchOptions
    ) -> list[list[flashback.Hit]]:
        """For each query the best texts, best first."""
        return [self.best(query)[: options.k] for query in queries]

    def best(self, query: str) -> list[flashback.Hit]:
        """All texts that share a word with a query."""
        words = set(query.lower().split())
        hits = []
        for name, text in TEXTS.items():
            shared = len(words & set(text.lower().split()))
            if shared:
                hits.append(flashback.Hit(name, name, name, text, score=shared))
        return sorted(hits, key=lambda hit: hit.score, reverse=True)


writer = flashback.load("flashback-mini", retriever=SharedWords())
result = writer.generate("In winter, snow", max_new_tokens=32)

print(result.text)
for stride in result.strides:
    print([passage.title for passage in stride.passages])
