"""A retriever of LangChain: any `BaseRetriever`, or a vector store, is taken as it is."""

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

import flashback

DOCUMENTS = [
    Document("The tides follow the moon, which pulls the water.", metadata={"title": "Tides"}),
    Document("Snow falls in winter. In spring it melts.", metadata={"title": "Snow"}),
    Document("Bees dance to tell where flowers are.", metadata={"title": "Bees"}),
]


class ByTitle(BaseRetriever):
    """Finds the documents whose title a query names."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [one for one in DOCUMENTS if one.metadata["title"].lower() in query.lower()]


writer = flashback.load("flashback-mini", retriever=ByTitle())
result = writer.generate("What is known about bees:", max_new_tokens=32)

print(result.text)
print("passages:", [passage.title for passage in result.strides[0].passages])
