"""The rows of the benchmark: one JSON line for each training of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dnas.errors import UserError
from dnas.files import write_text
from dnas.json_lines import append_record, read_lines, repair

RESULTS = Path(__file__).parents[2] / "docs" / "study"
"""Folder of the committed rows."""

RANDOM, LENGTH, SUPERNETS, DERIVED, HAND_MADE, RETRAININGS, RATES = (
    f"{name}.jsonl" for name in ("random", "length", "supernets", "derived", "hand_made", "retrainings", "rates")
)
"""File names of the rows."""


def read_rows(path: Path, **wanted: Any) -> list[dict[str, Any]]:
    """The rows of a file in which the given keys have the given values."""
    found = []
    for number, line in enumerate(read_lines(path, "results of a study"), start=1):
        if line.record is None:
            raise UserError(f"{path}: line {number} is damaged; restore the file from version control")
        if all(line.record.get(key) == value for key, value in wanted.items()):
            found.append(line.record)
    return found


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row, on disk when it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    repair(path, "results of a study")
    append_record(path, row, sync=True)


def replace_rows(path: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    """Replace all rows of a file, atomically."""
    import json

    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
