"""Right answers as strides behind their prompts: to be scored, or to be trained on."""

from collections.abc import Iterable
from dataclasses import replace

from flashback.corpus.documents import Document
from flashback.errors import FlashBackError, PromptsError, PromptTooLong, SettingsError
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.questions.forms import Asking
from flashback.questions.passages import Asked
from flashback.readers.chat import ChatPrompt
from flashback.readers.passages import passage_ids
from flashback.readers.text_reader import TextReader
from flashback.scoring.examples import Example
from flashback.scoring.windows import Cut, Window
from flashback.settings import RetrievalSettings


def answer_example(
    reader: TextReader, asked: Asked, prompt: ChatPrompt, answer: Ids, *, shown: bool
) -> Example:
    """An answer as the only stride behind its prompt.

    Args:
        shown: whether the question's passages are shown there.
    """
    ids, retrieval, question = prompt.ids, prompt.retrieval, asked.question
    passages: Ids = ()
    if shown:
        passages = passage_ids(reader, (hit.text for hit in asked.hits), retrieval)
    return Example(
        Window(
            Document(str(question.id), question.title, ""),
            ids + answer,
            len(reader.bos) if ids[: len(reader.bos)] == reader.bos else 0,
            (Cut(len(ids)),),
            len(answer),
        ),
        (passages,),
        retrieval.passage_tokens,
        retrieval.passages,
        retrieval.recomputed,
        retrieval.history_tokens,
    )


def without_tokens(asked: Asked, reader: TextReader) -> PromptsError:
    """What is raised for a right answer that the reader's tokenizer loses."""
    return PromptsError(
        f"the right answer {asked.question.answers[0]!r} has no tokens of {reader.name}; leave the "
        "question out, or use another reader"
    )


def training_examples(
    every: Iterable[Asked],
    asking: Asking,
    reader: TextReader,
    retrieval: RetrievalSettings,
    frame_tokens: int,
) -> list[Example]:
    """Questions with the passages found for them, to train on their right answers.

    The prompt is what a reader with an adapter is asked. The targets are the first right answer and
    the token that ends a text, so that a trained reader stops behind an answer.

    Args:
        reader: without an adapter.
        frame_tokens: f, of the frame that is trained.

    Raises:
        SettingsError: the reader has no token that ends a text.
        PromptTooLong: a question, its passages and its answer need more positions than there are.
        PromptsError: an answer has no tokens.
        ChatTemplateError: the reader's template refuses a conversation.
    """
    end = _end_of(reader)
    return [_training_example(one, asking, reader, retrieval, frame_tokens, end) for one in every]


def _training_example(
    asked: Asked,
    asking: Asking,
    reader: TextReader,
    retrieval: RetrievalSettings,
    frame_tokens: int,
    end: Ids,
) -> Example:
    # A frame that is trained stands in no turn of the template; only the slot has its own place.
    isolated = PATTERNS[retrieval.pattern].isolated
    posed = retrieval if isolated else replace(retrieval, pattern="none")
    try:
        prompt = asking.prompt(reader, asked.question, retrieval=posed)
        answer = asking.answer_ids(reader, asked.question)
        if not answer:
            raise without_tokens(asked, reader)
        example = answer_example(reader, asked, prompt, answer + end, shown=retrieval.retrieves)
        reserved = retrieval.passages * retrieval.passage_tokens if isolated else 0
        needed = len(example.window.ids) + max(reserved, len(example.passages[0])) + frame_tokens
        if needed > reader.window:
            raise PromptTooLong(
                f"with its passages and its answer it needs {needed} positions; {reader.name} has "
                f"{reader.window}; leave it out, or lower --passage-tokens"
            )
    except FlashBackError as error:
        raise type(error)(f"question {asked.question.id!r}: {error}") from None
    return example


def _end_of(reader: TextReader) -> Ids:
    """The token that ends an answer."""
    own = reader.tokenizer.eos_token_id
    if own not in reader.eos:
        own = min(reader.eos, default=None)
    if own is None:
        raise SettingsError(
            f"{reader.name} has no token that ends a text, so no answer can be trained on"
        )
    return (own,)
