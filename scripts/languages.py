"""Known-item search in several languages: how often a document is found by some of its own words.

    python scripts/languages.py --limit 4000

The documents are messages of programs in gettext catalogs (`*.mo` below /usr/share/locale and
others, see --catalogs): short texts in many languages that most Linux machines have. A query is a
four words of a document, or four pieces of three characters where a language has no spaces. With
--forms (needs `simplemma`), words are replaced by other forms of the same word that occur in the
corpus: that is what stemming is for. Prints recall at 5 for each language.
"""

import argparse
import contextlib
import gettext
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.retrieval.bm25 import BM25Index, IndexSettings, build_index
from flashback.settings import SearchOptions

LANGUAGES = {"en": ["en"], "de": ["de"], "zh": ["zh_CN"], "ja": ["ja"]}
"""The folders of the catalogs of a language; English is what catalogs translate."""
UNSPACED = ("zh", "ja")
STEMMERS = {"de": "german"}
LEAST_WORDS, LEAST_CHARACTERS, QUERY_WORDS, PIECE = 8, 20, 4, 3
_CODE = re.compile(r"%[-\w.$#]*|&\w+;|\{\w*\}|[_<>\"'`|]")


def catalogs(folders: Sequence[Path], language: str) -> Iterator[Path]:
    names = LANGUAGES["de"] if language == "en" else LANGUAGES[language]
    for folder in folders:
        for name in names:
            yield from sorted(folder.glob(f"{name}/LC_MESSAGES/*.mo"))


def messages(folders: Sequence[Path], language: str) -> list[str]:
    """The longer messages of a language, each once, without placeholders."""
    found: dict[str, None] = {}
    for path in catalogs(folders, language):
        for key, value in pairs_of(path):
            text = key if language == "en" else value
            if key and isinstance(text, str):
                text = " ".join(_CODE.sub(" ", text).split())
                if is_long(text, language):
                    found[text] = None
    return list(found)


def pairs_of(path: Path) -> list[tuple[object, object]]:
    """English and translated messages; none if a catalog does not say how it is encoded."""
    with contextlib.suppress(UnicodeDecodeError), open(path, "rb") as file:
        return list(gettext.GNUTranslations(file)._catalog.items())  # type: ignore[attr-defined]
    return []


def is_long(text: str, language: str) -> bool:
    if language in UNSPACED:
        return sum(ord(one) > 0x3000 for one in text) >= LEAST_CHARACTERS
    return len(text.split()) >= LEAST_WORDS


def words(text: str) -> list[str]:
    return [word for word in re.findall(r"[^\W\d_]+", text) if len(word) > 3]


def query(text: str, language: str, forms: dict[str, set[str]], rng: random.Random) -> str:
    """Some words of a text, or two pieces of it; in other forms where there are any."""
    if language in UNSPACED:
        text = "".join(one for one in text if ord(one) > 0x3000)
        starts = [rng.randrange(max(1, len(text) - PIECE)) for _ in range(QUERY_WORDS)]
        return " ".join(text[start : start + PIECE] for start in starts)
    known = words(text) or text.split()
    drawn = rng.sample(known, min(QUERY_WORDS, len(known)))
    return " ".join(rng.choice(sorted(forms.get(word, {word}))) for word in drawn)


def other_forms(texts: Sequence[str], language: str) -> dict[str, set[str]]:
    """For each word of a corpus its other forms there, by their common lemma."""
    import simplemma

    by_lemma: dict[str, set[str]] = defaultdict(set)
    for word in {word for text in texts for word in words(text)}:
        by_lemma[simplemma.lemmatize(word, lang=language).lower()].add(word)
    return {
        word: others
        for group in by_lemma.values()
        for word in group
        if (others := {one for one in group if one.lower() != word.lower()})
    }


def recall(
    texts: Sequence[str],
    language: str,
    forms: dict[str, set[str]],
    made: IndexSettings,
    queries: int,
) -> float:
    """The share of queries whose document is among the best five."""
    rng = random.Random(0)
    passages = (Passage(f"{n}#0", str(n), "", text) for n, text in enumerate(texts))
    with tempfile.TemporaryDirectory() as folder:
        build_index(Path(folder), passages, made, CorpusReport(), overwrite=True)
        index = BM25Index.open(folder)
        drawn = [rng.randrange(len(texts)) for _ in range(queries)]
        asked = [query(texts[number], language, forms, rng) for number in drawn]
        found = index.search(asked, SearchOptions(k=5))
    pairs = zip(drawn, found, strict=True)
    return sum(str(n) in {hit.document_id for hit in hits} for n, hits in pairs) / queries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--catalogs",
        type=Path,
        nargs="+",
        default=[Path("/usr/share/locale"), Path("/usr/share/locale-langpack")],
    )
    parser.add_argument("--limit", type=int, default=4000, help="Documents of each language.")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--forms", action="store_true", help="Ask with other forms of the words.")
    options = parser.parse_args()
    for language in LANGUAGES:
        texts = messages(options.catalogs, language)
        random.Random(0).shuffle(texts)
        texts = texts[: options.limit]
        spaced = language not in UNSPACED
        forms = other_forms(texts, language) if options.forms and spaced else {}
        for name in dict.fromkeys(("english", STEMMERS.get(language, "english"))):
            made = IndexSettings(language=name)
            share = recall(texts, language, forms, made, options.queries)
            print(f"{language} ({len(texts)} documents, {name}): recall@5 {share:.3f}", flush=True)


if __name__ == "__main__":
    main()
