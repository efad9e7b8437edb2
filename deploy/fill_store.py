"""Put the passages of texts into a store: what a container does before others serve.

    python deploy/fill_store.py postgresql://flashback@store/flashback my-texts/

Documents that are there already are replaced, so that it may run again; others stay.
"""

import sys

from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import cut_documents
from flashback.errors import FlashBackError
from flashback.retrieval.indexing import open_corpus
from flashback.retrieval.protocol import Writable
from flashback.retrieval.specs import open_retriever


def fill(url: str, texts: list[str]) -> int:
    """Add the passages of texts, in one commit; their number.

    Raises:
        FlashBackError: the store cannot be reached or not be written, or a text not be read.
    """
    store = open_retriever(url)
    if not isinstance(store, Writable):
        raise FlashBackError("the store takes no passages; expected one that can be written")
    corpus = open_corpus(texts, CorpusReport())
    passages = list(cut_documents(corpus.read(lambda _: None)))
    store.delete({passage.document_id for passage in passages})
    store.add(passages)
    store.commit()
    return len(passages)


def main() -> int:
    """Fill it; 1 if that failed, 2 without arguments."""
    if len(sys.argv) < 3:
        print("fill_store: expected a store's URL and texts", file=sys.stderr)
        return 2
    try:
        print(f"{fill(sys.argv[1], sys.argv[2:])} passages")
    except FlashBackError as error:
        print(f"fill_store: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
