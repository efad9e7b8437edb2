"""The README of an adapter folder: what it is, how it is used, what was measured."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flashback.evaluation.markdown import rows_in_markdown, summary_of
from flashback.files import write_atomically
from flashback.patterns.registry import PATTERNS
from flashback.readers.card import CARD, AdapterCard, card_record, read_card
from flashback.readers.lora_settings import Marks


def model_card(card: AdapterCard) -> str:
    """Markdown with the metadata that the Hugging Face hub reads."""
    marks = {
        Marks.TRAINED: "`<MARK_L>` and `<MARK_R>` around it, whose embeddings were trained",
        Marks.FROZEN: "`<MARK_L>` and `<MARK_R>` around it, whose embeddings were not trained",
        Marks.NONE: "nothing around it",
    }[card.marks]
    if card.frame_before:
        marks += f"; {json.dumps(card.frame_before)} stands in front of it"
    where = PATTERNS[card.pattern].place
    task = f"It reads a retrieved passage {where}, with {marks}." if where else "No retrieval."
    index = " --index IDX" if PATTERNS[card.pattern].retrieves else ""
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
        f"Context pattern `{card.pattern}` of FlashBack, whose paper is arXiv 2405.04065. {task}",
        "",
        "```bash",
        f"flashback generate --model {card.base.name} --adapter FOLDER --pattern {card.pattern}"
        f'{index} "A prompt"',
        "flashback export --help    # a plain checkpoint for transformers and vLLM",
        "```",
        "",
        f"Trained for a stride of {card.stride} tokens, queries of {card.query_tokens} "
        f"({card.query_form}), "
        f"{card.passages} x {card.passage_tokens} passage tokens, windows of {card.window_tokens}. "
        f"LoRA rank {card.training.get('rank')}, alpha {card.training.get('alpha')}; "
        f"{card.training.get('steps')} steps of {_windows(card.training)} windows{_on(card.data)}.",
        *_measured(card.results.get("table")),
    ]
    return "\n".join(lines) + "\n"


def _on(data: dict[str, Any]) -> str:
    """The questions that it was trained on, if there were any."""
    if "questions" not in data:
        return ""
    beside = " and on documents" if data.get("documents") else ""
    return f", on the right answers of {data['questions']} (form {data.get('form')}){beside}"


def _windows(training: dict[str, Any]) -> int:
    """Of an optimizer step, on all devices; it ends with the last window of an epoch."""
    names = ("windows_per_step", "accumulation", "processes")
    together = math.prod(int(training.get(name, 1)) for name in names)
    return min(together, int(training.get("windows", together)))


def _measured(table: dict[str, Any] | None) -> Iterable[str]:
    if table is None:
        return
    yield ""
    yield "## Measured"
    yield ""
    yield f"Perplexity per token on held-out documents. {summary_of(table)}"
    yield ""
    yield from rows_in_markdown(table)


def record_table(folder: Path, table: dict[str, Any]) -> AdapterCard:
    """Put what was measured of an adapter into its card and its README.

    Args:
        table: `Table.record`.
    """
    card = read_card(folder)
    card = replace(card, results=card.results | {"table": table})
    write_atomically(folder / "README.md", model_card(card))
    write_atomically(folder / CARD, card_record(card))
    return card
