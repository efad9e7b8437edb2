"""Tokenizers that spell in bytes what their vocabulary lacks: every cut of every text is right."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashback.engines.protocol import Capabilities, Completion, Usage
from flashback.patterns.prompt import Prompt
from flashback.readers.text_reader import TextReader
from flashback.sampling import Sampler
from flashback.settings import RetrievalSettings, Settings, StoppingSettings
from flashback.writing.detokenization import Detokenizer
from flashback.writing.generator import Generator
from gguf_files import gemma_tokenizer
from tiny_readers import sentencepiece_reader, tiny_reader

SPELLED = [sentencepiece_reader(), replace(tiny_reader(), tokenizer=gemma_tokenizer())]
"""As Llama 2's, which drops the space in front of a text, and Gemma's."""
TEXTS = [
    "the 雪 falls",
    "é🙂é",
    "\n\tthe\r\n",
    "🏳️‍🌈 👨‍👩‍👧 e\u0301",
    "ไทย العربية עברית",
    "한국어 日本語 中文",
    "𝄞𝄞𝄞 a𐍈b",
    "\ufffd the \ufffd\ufffd",
    "json\u2028the\u00a0s",
]


def bytes_of(reader: TextReader, ids: Sequence[int]) -> bytes:
    """What the tokens are, one by one."""
    names = reader.tokenizer.convert_ids_to_tokens(list(ids))
    named = reader.byte_tokens.named
    return b"".join(
        bytes([named[name]]) if name in named else name.replace("▁", " ").encode() for name in names
    )


def written(reader: TextReader, context: Sequence[int], new: Sequence[int]) -> str:
    detokenizer = Detokenizer(reader, context)
    pieces = [detokenizer.push(token) for token in new]
    return "".join([*pieces, detokenizer.finish()])


@pytest.mark.parametrize("reader", SPELLED)
@pytest.mark.parametrize("text", TEXTS)
def test_every_cut_and_every_early_end_are_what_the_bytes_say(
    reader: TextReader, text: str
) -> None:
    ids = reader.encode(text)
    for cut in range(len(ids)):
        try:
            bytes_of(reader, ids[:cut]).decode()
        except UnicodeDecodeError:
            continue  # the context ends within a character; see below
        for end in range(cut + 1, len(ids) + 1):
            expected = bytes_of(reader, ids[cut:end]).decode("utf-8", "replace")
            if cut == 0:  # both drop the space in front of a text
                expected = expected.removeprefix(" ") if reader is SPELLED[0] else expected
            assert written(reader, ids[:cut], ids[cut:end]) == expected


@pytest.mark.parametrize("reader", SPELLED)
@pytest.mark.parametrize("text", [text for text in TEXTS if "\ufffd" not in text])
def test_a_character_that_the_context_begins_is_shown_once_it_is_whole(
    reader: TextReader, text: str
) -> None:
    ids = reader.encode(f"the {text}")
    whole = reader.decode(ids)
    for cut in range(1, len(ids)):
        before = bytes_of(reader, ids[:cut]).decode("utf-8", "ignore")
        before = before.removeprefix(" ") if reader is SPELLED[0] else before
        assert before + written(reader, ids[:cut], ids[cut:]) == whole


@pytest.mark.parametrize("reader", SPELLED)
@given(st.lists(st.sampled_from(b"a\xc3\xa9\xf0\x9f\x99\x82\xe2\x82\xac\xff\x80"), max_size=60))
def test_arbitrary_bytes_are_decoded_as_python_decodes_them(
    reader: TextReader, given_bytes: list[int]
) -> None:
    known = reader.tokenizer.get_vocab()
    ids = [known[f"<0x{byte:02X}>"] for byte in given_bytes]
    expected = bytes(given_bytes).decode("utf-8", "replace")
    assert reader.decode(ids) == expected
    assert written(reader, [], ids) == expected
    assert written(reader, reader.encode("the"), ids) == expected


@pytest.mark.parametrize("reader", SPELLED)
def test_special_tokens_within_bytes_are_left_out(reader: TextReader) -> None:
    eos = int(reader.tokenizer.eos_token_id)
    first, second = reader.encode("é")[-2:]
    assert reader.decode([first, eos, second]) == "é"
    assert reader.show([first, second, eos]) == f"é{reader.tokenizer.eos_token}"


class Writes:
    """An engine that writes given tokens."""

    def __init__(self, reader: TextReader, ids: Sequence[int]) -> None:
        self.capabilities = Capabilities(window=reader.window, slot=False)
        self._ids = iter(ids)
        self._size = reader.vocabulary_size

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        return Completion(self._tokens(max_tokens, sampler), Usage())

    def _tokens(self, max_tokens: int, sampler: Sampler) -> Iterator[int]:
        for _ in range(max_tokens):
            logits = torch.zeros(self._size)
            logits[next(self._ids)] = 10.0
            yield sampler.choose(logits)


@pytest.mark.parametrize("reader", SPELLED)
@pytest.mark.parametrize("stop", ["雪", "é", "🙂", "🙂é", "\n", "語a", "\ufffd"])
def test_a_stop_text_of_bytes_ends_the_text_wherever_it_stands(
    reader: TextReader, stop: str
) -> None:
    for before, behind in (("the ", "🙂 the"), ("雪é"[: 2 - (stop in "雪é")], "本" * 20), ("", "")):
        before = before if stop not in before else "ü"
        text = f"a {before}{stop}{behind}{'s' * 9}"
        ids = reader.encode(text)
        generator = Generator(reader, Writes(reader, ids), None)
        stopping = StoppingSettings(max_new_tokens=len(ids), stop=(stop,))
        settings = Settings(RetrievalSettings("none", stride=5), stopping=stopping)
        found = generator.generate(reader.encode("the"), settings)
        assert found.finish_reason == "stop"
        assert found.text.lstrip() == f"a {before}"
        shown = len(reader.encode(f"a {before}{stop}{behind[:1]}s"))
        assert len(found.tokens) <= shown  # no run of bytes is waited for
