"""The README of an adapter folder: what it is, how it is used, what was measured."""

from collections.abc import Iterable
from typing import Any

from flashback.adapter import AdapterCard
from flashback.settings import Marks


def model_card(card: AdapterCard) -> str:
    """Markdown with the metadata that the Hugging Face hub reads."""
    marks = {
        Marks.TRAINED: "`<MARK_L>` and `<MARK_R>` around it, whose embeddings were trained",
        Marks.FROZEN: "`<MARK_L>` and `<MARK_R>` around it, whose embeddings were not trained",
        Marks.NONE: "nothing around it",
    }[card.marks]
    where = {"append": "behind the text", "prepend": "in front of the text"}.get(card.pattern)
    task = f"It reads a retrieved passage {where}, with {marks}." if where else "No retrieval."
    lines = [
        "---",
        f"base_model: {card.base.name}",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags: [flashback, lora, retrieval-augmented-generation]",
        "---",
        "",
        f"# A FlashBack adapter for {card.base.name}",
        "",
        f"Pattern `{card.pattern}` (arXiv 2405.04065). {task}",
        "",
        "```bash",
        f'flashback generate --model {card.base.name} --adapter FOLDER --index IDX "A prompt"',
        "flashback export --help    # a plain checkpoint for transformers and vLLM",
        "```",
        "",
        f"Trained for a stride of {card.stride} tokens, queries of {card.query_tokens}, "
        f"{card.passages} x {card.passage_tokens} passage tokens, windows of {card.window_tokens}. "
        f"LoRA rank {card.training.get('rank')}, alpha {card.training.get('alpha')}; "
        f"{card.training.get('steps')} steps of {_windows(card.training)} windows.",
        *_measured(card.results.get("table")),
    ]
    return "\n".join(lines) + "\n"


def _windows(training: dict[str, Any]) -> int:
    return int(training.get("windows_per_step", 0)) * int(training.get("accumulation", 1))


def _measured(table: dict[str, Any] | None) -> Iterable[str]:
    if table is None:
        return
    yield ""
    yield "## Measured"
    yield ""
    yield (
        f"Perplexity on {table['tokens']:,} target tokens of {table['documents']} held-out "
        "documents, with 95 % intervals over documents:"
    )
    yield ""
    yield "| | perplexity | | against the first row |"
    yield "|---|---|---|---|"
    for row in table["rows"]:
        ratio = row["against_first_row"]
        yield (
            f"| {row['name']} | {row['perplexity']:.2f} | {row['low']:.2f} to {row['high']:.2f} | "
            f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}) |"
        )
