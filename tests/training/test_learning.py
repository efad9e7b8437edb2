"""The point of training: a reader learns to take from an appended passage what it cannot know.

Every name has a number that stands in the index only; documents mention names and then their
numbers. What is learned on some names is measured on others, whose numbers no training has seen.
"""

import copy
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from command_line import run
from flashback.corpus.documents import Document
from flashback.patterns.frame import Frame
from flashback.patterns.prompt import Ids
from flashback.readers.adapter import add_marks, put_on
from flashback.readers.card import AdapterCard
from flashback.readers.placement import Placement
from flashback.readers.reader import Reader
from flashback.retrieval.bm25 import BM25Index
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.retrieved_windows import cut_and_retrieve
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RetrievalSettings
from flashback.training.run import Run
from flashback.training.train import train
from flashback.training.training_settings import TrainingSettings

FIRST = ("ka", "lo", "mi", "nu", "pe", "ro", "su", "ti", "va", "zo")
SECOND = ("bar", "den", "fil", "gon", "hus", "jam", "kor", "lun", "mek")
NAMES = ["".join(pair) for pair in product(FIRST, SECOND)]
LEARNED, UNSEEN = NAMES[::2], NAMES[1::2]
NUMBERS = [str(number) for number in range(210, 250)]
FACTS = {name: random.Random(name).choice(NUMBERS) for name in NAMES}
WORDS = ("well", "then", "so", "ask", "about", "it", "was", "the", "code", "of", "is", ",", ".")
FEW = 0.15
"""More than guessing gets right of 40 numbers; much less than reading does."""

# A document's numbers stand each right behind a boundary, with the name in the query before it.
RETRIEVAL = RetrievalSettings("append", stride=8, query_tokens=4, passage_tokens=7)
WINDOWS = WindowSettings(window_tokens=40, first_boundary=8)
SETTINGS = TrainingSettings(
    rank=8, learning_rate=0.01, steps=100, windows_per_step=8, checkpoint_steps=100
)


def passage_of(name: str) -> str:
    return f"the code of {name} is {FACTS[name]} ."


def documents(names: Sequence[str], count: int) -> list[Document]:
    """Each mentions four names, and then their numbers."""
    drawn = random.Random(len(names) * count)
    found = []
    for number in range(count):
        *mentioned, last = drawn.sample(names, 5)
        facts = [f"{name} , {FACTS[name]} it was so ask about" for name in mentioned]
        text = " ".join(["well then so ask about", *facts, last, ","])
        found.append(Document(f"document {number}", f"Document {number}", text))
    return found


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    words = ["<s>", "</s>", "<unk>", *WORDS, *NAMES, *NUMBERS]
    vocabulary = {word: at for at, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def copying_model(words: int) -> LlamaForCausalLM:
    """A tiny model that goes on as it once went on in its context, and has learned nothing else.

    It has read random words, and later in the same context the same words again.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    steps, batch, length = 700, 16, 12
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, step / 50, 3 - 3 * step / steps)
        once = torch.stack([3 + torch.randperm(words - 3)[:length] for _ in range(batch)])
        between = torch.randint(3, words, (batch, int(torch.randint(0, length, ()))))
        ids = torch.cat([torch.zeros(batch, 1, dtype=torch.long), once, between, once], 1)
        logits = model(input_ids=ids, use_cache=False).logits[:, -length:-1]
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 1 - length :].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert float(loss.detach()) < 0.3  # it copies
    model.eval()
    return model


class School:
    """An untrained reader, an index of the facts, and examples of documents."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model = copying_model(len(word_tokenizer()))
        records = [{"id": name, "title": name, "text": passage_of(name)} for name in NAMES]
        facts = folder / "facts.jsonl"
        facts.write_text("".join(json.dumps(record) + "\n" for record in records))
        run("index", facts, "--out", folder / "IDX", "--no-title")
        self._index = BM25Index.open(folder / "IDX")
        self.learned = self._examples(documents(LEARNED, 120))
        self.unseen = self._examples(documents(UNSEEN, 30))

    def reader(self) -> Reader:
        """The untrained one, anew."""
        placement = Placement(torch.device("cpu"), torch.float32, "a test")
        model = copy.deepcopy(self._model)
        return Reader(
            name="tiny",
            tokenizer=word_tokenizer(),
            window=128,
            window_reason="a test",
            model=model,
            placement=placement,
        )

    def trained(self, pattern: str) -> Reader:
        """The same, trained on documents of some names."""
        out = self._folder / pattern
        own = Run(SETTINGS, replace(RETRIEVAL, pattern=pattern), WINDOWS)
        card = train(self.reader(), self.learned, own, out)
        assert learned_something(card)
        return put_on(self.reader(), out)

    def _examples(self, texts: Sequence[Document]) -> list[Example]:
        (prepared,) = cut_and_retrieve(texts, self.reader(), self._index, [RETRIEVAL], WINDOWS)
        return prepared.examples(self.reader(), RETRIEVAL)


def learned_something(card: AdapterCard) -> bool:
    """Every pattern learns the words between the facts."""
    losses: list[float] = [entry["loss"] for entry in card.results["log"]]
    return losses[-1] < losses[0] - 0.5


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> School:
    return School(tmp_path_factory.mktemp("school"))


@pytest.fixture(scope="module")
def reading(school: School) -> Reader:
    """Trained with passages behind the text."""
    return school.trained("append")


def share_right(
    reader: Reader, examples: Sequence[Example], pattern: str, frame: Frame | None = None
) -> float:
    """How often the number is the most probable next word, of all boundaries."""
    arrangement = Arrangement(pattern, reader.frame(None, pattern) if frame is None else frame)
    right = []
    for example in examples:
        for at, cut in enumerate(example.window.cuts):
            prompt = arrangement.arrange(example, at).arranged
            right.append(most_probable(reader, prompt) == example.window.targets(cut)[0])
    return sum(right) / len(right)


@torch.no_grad()
def most_probable(reader: Reader, prompt: Ids) -> int:
    return int(reader.model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())


def test_the_facts_are_found_and_are_nowhere_else(school: School) -> None:
    """Every passage is the one of the name before the boundary, and its number comes next."""
    reader = school.reader()
    for example in (*school.learned, *school.unseen):
        assert len(example.window.cuts) == 4
        for cut, passage in zip(example.window.cuts, example.passages, strict=True):
            name, comma = reader.decode(example.window.context(cut)[-2:]).split()
            assert (name in FACTS, comma) == (True, ",")
            assert reader.decode(passage) == passage_of(name)
            assert reader.decode(example.window.targets(cut)[:1]) == FACTS[name]


def test_a_trained_reader_reads_and_an_untrained_one_does_not(
    school: School, reading: Reader
) -> None:
    """120 facts of names that no training has seen."""
    assert share_right(reading, school.unseen, "append") > 0.8
    assert share_right(reading, school.unseen, "none") < FEW
    untrained = school.reader()
    assert share_right(untrained, school.unseen, "none") < FEW
    assert share_right(untrained, school.unseen, "append", Frame()) < FEW
    given = add_marks(untrained.tokenizer, untrained.model)
    marks = Frame(given[:1], given[1:])
    assert share_right(untrained, school.unseen, "append", marks) < FEW


def test_training_without_passages_does_not_teach_to_read(school: School) -> None:
    baseline = school.trained("none")
    for pattern in ("none", "append"):
        assert share_right(baseline, school.unseen, pattern) < FEW


def test_a_trained_reader_believes_the_passage(school: School, reading: Reader) -> None:
    """Where every passage is another boundary's, it says what stands there."""
    wrong = [
        replace(example, passages=(*example.passages[1:], example.passages[0]))
        for example in school.unseen
    ]
    assert share_right(reading, wrong, "append") < FEW
    arrangement = Arrangement("append", reading.frame(None, "append"))
    said = [
        (most_probable(reading, arrangement.arrange(example, at).arranged), passage[-2])
        for example in wrong
        for at, passage in enumerate(example.passages)
    ]
    assert sum(one == other for one, other in said) > 0.8 * len(said)
