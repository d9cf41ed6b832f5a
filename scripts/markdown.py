"""Tables of documents that are written from measured rows: each stands between two comments that name it."""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dnas.files import write_text

NOTHING = "*No rows yet.*"


def update(document: Path, change: Callable[[str], str], command: str, *, check: bool) -> None:
    """Write ``document`` after ``change``; with ``check`` exit instead, with an error that names the command to run."""
    before = document.read_text()
    after = change(before)
    if not check:
        write_text(document, after)
    elif before != after:
        sys.exit(f"{document}: run {command}")


def with_block(document: str, mark: str, text: str) -> str:
    """The document with ``text`` between ``<!-- begin: MARK -->`` and ``<!-- end: MARK -->``, if it has these."""
    pattern = re.compile(rf"(<!-- begin: {re.escape(mark)} -->\n).*?(<!-- end: {re.escape(mark)} -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", document)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; floats are written with two digits."""
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(header), ["---"] * len(header), *cells])


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean ± standard deviation; the mean alone of one value."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else mean
