"""Train `flashback-mini`, the reader that ships with FlashBack, from nothing. One command:

    make mini

Data: the `base` split of the corpus `python-docs` of the environment it runs in, without anything
that repeats an evaluation document. Seeded; about 75 minutes on two cores (bfloat16 autocast).

Symbols: B sequences per step, T their length, V the vocabulary size.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flashback.corpus.documents import Document
from flashback.corpus.python_docs import find_modules, read_python_docs
from flashback.corpus.split import split_documents

BOS, EOS = "<s>", "</s>"


@dataclass(frozen=True)
class Stage:
    """Part of the training: sequences of `length` tokens, for `tokens` tokens."""

    length: int
    tokens: int


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result."""

    vocabulary: int = 8192
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    intermediate: int = 768
    window: int = 2048
    stages: tuple[Stage, ...] = (
        # Short sequences are cheap; the last stage fills the window: every position is learned.
        Stage(512, 7_500_000),
        Stage(1024, 4_500_000),
        Stage(2048, 3_000_000),
    )
    step_tokens: int = 8192
    muon_rate: float = 0.015
    adam_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.02
    """Share of the steps."""
    seed: int = 20261123

    @property
    def steps(self) -> int:
        return sum(stage.tokens // self.step_tokens for stage in self.stages)


def document_text(document: Document) -> str:
    return f"{document.title}\n\n{document.text}"


def train_tokenizer(texts: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be written, nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=recipe.window,
        clean_up_tokenization_spaces=False,
    )


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.window,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All documents as one sequence: BOS, text, EOS, BOS, text, EOS …"""
    encoded = tokenizer(texts)["input_ids"]
    return torch.tensor([token for ids in encoded for token in (*ids, tokenizer.eos_token_id)])


def batches(stream: torch.Tensor, recipe: Recipe, bos: int) -> Iterator[torch.Tensor]:
    """Yield (B, T+1) training sequences, BOS at position 0, in a new order every epoch."""
    generator = torch.Generator().manual_seed(recipe.seed)
    for stage in recipe.stages:
        size = recipe.step_tokens // stage.length  # B
        rows: list[torch.Tensor] = []
        for _ in range(stage.tokens // recipe.step_tokens):
            while len(rows) < size:
                offset = int(torch.randint(stage.length, (), generator=generator))
                pieces = stream[offset:].unfold(0, stage.length, stage.length)  # (n, T)
                order = torch.randperm(len(pieces), generator=generator)
                rows.extend(pieces[order])
            batch = torch.stack([rows.pop(0) for _ in range(size)])
            yield torch.cat([torch.full((size, 1), bos), batch], dim=1)


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the (tied) embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then linear decay to zero; a factor of the peak rate."""
    warmup = recipe.warmup * recipe.steps
    return min((step + 1) / warmup, (recipe.steps - step) / (recipe.steps - warmup))


def sequence_loss(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch[:, :-1]).logits  # (B, T, V)
    return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def train(model: LlamaForCausalLM, stream: torch.Tensor, recipe: Recipe, log: Path) -> None:
    steppers = optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(stepper, lambda step: rate(step, recipe))
        for stepper in steppers
    ]
    bos = model.config.bos_token_id
    assert isinstance(bos, int)
    start = time.perf_counter()
    with log.open("w") as records:
        steps = track(batches(stream, recipe, bos), total=recipe.steps)
        for step, batch in enumerate(steps):
            loss = sequence_loss(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper, schedule in zip(steppers, schedules, strict=True):
                stepper.step()
                schedule.step()
                stepper.zero_grad()
            seconds = time.perf_counter() - start
            row = {"step": step, "loss": loss.item(), "seconds": round(seconds, 1)}
            print(json.dumps(row), file=records, flush=True)


@torch.inference_mode()
def bits_per_byte(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> dict[str, float]:
    """Over whole documents in full windows, each window starting from BOS, in float32."""
    bits, count, size = 0.0, 0, 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        size += len(text.encode())
        for start in range(0, len(ids), model.config.max_position_embeddings - 1):
            piece = ids[start : start + model.config.max_position_embeddings - 1]
            logits = model(torch.tensor([[tokenizer.bos_token_id, *piece[:-1]]])).logits[0]
            bits += float(functional.cross_entropy(logits, torch.tensor(piece), reduction="sum"))
            count += len(piece)
    bits /= math.log(2)
    return {
        "bits_per_byte": bits / size,
        "perplexity": 2 ** (bits / count),
        "tokens": count,
        "bytes": size,
    }


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Half precision on disk: 14 MB instead of 27; readers load it as they need it."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.half().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.copy(Path(__file__).parent / "NOTICE", partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished reader")
    parser.add_argument("--work", type=Path, default=Path("build/mini"), help="for the log")
    arguments = parser.parse_args()
    recipe = Recipe()
    torch.manual_seed(recipe.seed)
    arguments.work.mkdir(parents=True, exist_ok=True)

    parts = split_documents(read_python_docs(find_modules()))
    texts = [document_text(document) for document in parts["base"]]
    tokenizer = train_tokenizer(texts, recipe)
    stream = token_stream(tokenizer, texts)
    model = new_model(recipe, tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(stream):,} tokens, {recipe.steps} steps")
    train(model, stream, recipe, arguments.work / "log.jsonl")
    save(model, tokenizer, arguments.out)

    shipped = LlamaForCausalLM.from_pretrained(arguments.out, dtype=torch.float32).eval()
    held_out = [document_text(document) for document in parts["evaluation"]]
    report = {
        "recipe": asdict(recipe),
        "parameters": shipped.num_parameters(),
        "training": {"documents": len(texts), "tokens": len(stream)},
        "evaluation": {"documents": len(held_out), **bits_per_byte(shipped, tokenizer, held_out)},
    }
    (Path(__file__).parent / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["evaluation"], indent=2))


if __name__ == "__main__":
    main()
