"""Perplexities of one row of a table against another's: paired, resampled by document.

    python scripts/row_ratios.py docs/results/smollm2-docs.jsonl "slot (text)" "prepend (text)"

FILE has a line for each document, as `flashback eval perplexity --per-document` and
`flashback reproduce` write them.
"""

import json
import sys
from pathlib import Path

import numpy as np

from flashback.evaluation.statistics import Bootstrap


def main(arguments: list[str]) -> int:
    """Print the ratio with its 95 % interval; the exit code."""
    if len(arguments) != 3:
        print("usage: row_ratios.py FILE ROW BASE", file=sys.stderr)
        return 2
    file, *rows = arguments
    try:
        documents = [json.loads(line) for line in Path(file).read_text("utf-8").splitlines()]
        tokens = np.array([one["tokens"] for one in documents], float)
        known = documents[0]["nats"]
    except OSError as error:
        print(f"row_ratios.py: {file}: {error.strerror}", file=sys.stderr)
        return 1
    except (ValueError, LookupError, TypeError):
        print(
            f"row_ratios.py: {file}: expected a line of JSON for each document, with 'tokens' and "
            "'nats', as --per-document writes them",
            file=sys.stderr,
        )
        return 1
    if missing := [row for row in rows if row not in known]:
        print(
            f"row_ratios.py: no row {missing[0]!r}; expected one of {', '.join(known)}",
            file=sys.stderr,
        )
        return 1
    row, base = (np.array([one["nats"][name] for one in documents]) for name in rows)
    found = Bootstrap(len(documents)).ratio(row, base, tokens)
    print(f"{rows[0]} / {rows[1]}: {found.value:.4f} ({found.low:.4f} to {found.high:.4f})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
