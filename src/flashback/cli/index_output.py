"""What commands of `flashback index` share: the reader that counts tokens, what is printed."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from flashback.cli.console import notes
from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import TokenEnds, estimated_ends
from flashback.retrieval.analysis import NEUTRAL
from flashback.retrieval.bm25 import NEAR_DUPLICATES
from flashback.retrieval.index_folder import Manifest

_WORTH_SAYING = 0.01
"""The share of a corpus about which a note is printed."""


def token_ends_of(model: str, trust_remote_code: bool) -> TokenEnds:
    """Where tokens end; loaded before a corpus is read."""
    if model == "none":
        return estimated_ends
    from flashback.cli.quiet import begin_loading

    begin_loading(f"the tokenizer of {model}")
    from flashback.readers.load import load_token_ends

    return load_token_ends(model, trust_remote_code)


def skipped(report: CorpusReport) -> dict[str, Any]:
    """What was not read, and why."""
    return {
        "bad_records": [asdict(record) for record in report.examples],
        "skipped_files": [asdict(file) for file in report.skipped],
    }


def print_manifest(
    folder: Path, manifest: Manifest, as_json: bool, more: dict[str, Any] | None = None
) -> None:
    """What an index holds, for people or as JSON, there with `more`."""
    if as_json:
        click.echo(json.dumps(asdict(manifest) | (more or {}), indent=2))
        return
    counts = manifest.content.counts
    repeated = counts.get("repeated_passages", 0)
    click.echo(
        f"{folder}: {counts.get('passages', 0):,} passages of {counts.get('documents', 0):,} "
        f"documents ({repeated:,} repeated ones left out), {manifest.bytes / 1e6:.1f} MB"
    )


def detected_note(sampled: int, share: float, language: str, languages: Mapping[str, float]) -> str:
    """What was found of a corpus's language, see `Detected`."""
    named = ((one, part) for one, part in languages.items() if part >= _WORTH_SAYING)
    parts = ", ".join(f"{'unknown' if one == '?' else one} {part:.0%}" for one, part in named)
    taken = f"Latin script is taken for {language.replace('+', ' and ')}"
    if language == NEUTRAL:
        taken = "Latin script is mostly of languages without stems: words are found as written"
    return f"language: {parts} of {sampled:,} passages looked at ({share:.1%}); {taken}"


def print_notes(folder: Path, manifest: Manifest) -> None:
    """What a user should know about what was made."""
    counts = manifest.content.counts
    if dropped := counts.get("near_duplicates", 0):
        notes.print(
            f"near-identical passages, left out: {dropped:,}, listed in "
            f"{folder / manifest.data / NEAR_DUPLICATES}",
            markup=False,
        )
    if detected := manifest.content.detected:
        notes.print(detected_note(**detected), markup=False)
    share = counts.get("letters_without_stems", 0) / (counts.get("letters", 0) or 1)
    if share >= _WORTH_SAYING:
        notes.print(
            f"{share:.0%} of the text is in scripts without stemming: its words are found only in "
            "the form in which they are written"
        )
