"""Finding latency tables by path or by the name of a bundled one."""

from __future__ import annotations

from pathlib import Path

from dnas.errors import UserError
from latency_tables import table_file, table_names


def find_table(reference: str) -> Path:
    """The file of a latency table: a path, or the name of a bundled table (see ``latency_tables``)."""
    path = Path(reference)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    if reference not in table_names():
        known = ", ".join(table_names()) or "none"
        raise UserError(f"{reference}: neither a latency table file nor one of the bundled tables: {known}")
    with table_file(reference) as found:
        return found
