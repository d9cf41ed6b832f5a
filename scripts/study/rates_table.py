"""The table of a comparison of dilation rates, from the rows of ``scripts.compare_rates``."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.markdown import NOTHING, markdown_table, spread, with_block
from scripts.study.analysis import bootstrap
from scripts.study.rows import RATES, read_rows

LABELS = {
    "derived": "derived",
    "ones": "all 1",
    "random": "random, same field of view, no gaps (Eq. 3)",
    "random_with_gaps": "random, same field of view, with gaps",
    "rf_next": "found by RF-Next",
}


def with_rates_tables(document: str, results: Path) -> str:
    """The document with the tables of all comparisons that it has a place for."""
    for name in re.findall(r"<!-- begin: rates (.+?) -->", document):
        document = with_block(document, f"rates {name}", rates_table(name, results))
    return document


def rates_table(comparison: str, results: Path) -> str:
    """Networks with derived, equal and random rates; the differences are those of the derived to the others."""
    rows = read_rows(results / RATES, comparison=comparison)
    groups = {name: [row for row in rows if row["rates"] == name] for name in LABELS}
    lines = []
    for name, group in groups.items():
        if not group:
            continue
        miou = _percent(group, "test_miou")
        below = difference = ""
        if name != "derived" and groups["derived"]:
            mine = _percent(groups["derived"], "test_miou")
            low, high = bootstrap(mine, miou, lambda a, b: a.mean(axis=1) - b.mean(axis=1))
            mean = statistics.mean(mine)
            below = f"{sum(value < mean for value in miou)} of {len(miou)}"
            # Of one training the interval would leave out its noise.
            interval = f" ({low:+.1f} to {high:+.1f})" if min(len(mine), len(miou)) > 1 else ""
            difference = f"{mean - statistics.mean(miou):+.1f}{interval}"
        top = [row for row in group if row["top_quarter"] is not None]
        fields = sorted({row["field_of_view"] for row in group})
        lines.append(
            (
                LABELS[name],
                len(group),
                " ".join(map(str, fields)),
                spread(miou, ".1f"),
                f"{min(miou):.1f} to {max(miou):.1f}",
                spread(_percent(top, "top_quarter"), ".1f"),
                below,
                difference,
            )
        )
    header = [
        "rates",
        "n",
        "field of view",
        "mIoU",
        "range",
        "top quarter",
        "below the derived mean",
        "derived better by",
    ]
    if not any(row["top_quarter"] is not None for row in rows):  # only `rectangles` has one
        place = header.index("top quarter")
        header.pop(place)
        lines = [(*line[:place], *line[place + 1 :]) for line in lines]
    return markdown_table(header, lines) if lines else NOTHING


def _percent(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [100 * row[key] for row in rows]
