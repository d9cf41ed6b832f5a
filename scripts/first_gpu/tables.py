"""Write the tables of the first session on a GPU from its rows into docs/RESULTS.md.

    python -m scripts.first_gpu.tables [--check]

``--check`` writes nothing and fails if a table is not that of the rows. Rehearsals on the CPU have no place there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.first_gpu.session import records
from scripts.markdown import NOTHING, markdown_table, update, with_block

RESULTS = Path(__file__).parents[2] / "docs" / "first_gpu"
"""Folder of the committed rows."""

DOCUMENT = RESULTS.parent / "RESULTS.md"

Column = tuple[str, str, str]
"""Heading, key of the row, and format; ``%`` formats are shares."""

TABLES: Mapping[str, Sequence[Column]] = {
    "benchmark": (
        ("network", "network", ""),
        ("backend", "backend", ""),
        ("input", "input_size", ""),
        ("ms", "median", ".2f"),
        ("10 %", "p10", ".2f"),
        ("90 %", "p90", ".2f"),
        ("FPS", "fps", ".0f"),
        ("peak memory (MiB)", "peak_memory_mb", ".0f"),
    ),
    "kernel": (
        ("channels a group", "width", ""),
        ("type", "dtype", ""),
        ("layout", "layout", ""),
        ("implementation", "implementation", ""),
        ("output", "output", ".1e"),
        ("input's gradient", "input", ".1e"),
        ("weight's", "weight", ".1e"),
        ("rate's", "rate", ".1e"),
    ),
    "retraining": (
        ("precision", "precision", ""),
        ("steps", "steps", ""),
        ("batch", "batch", ""),
        ("size", "size", ""),
        ("first loss", "first_loss", ".3f"),
        ("last loss", "last_loss", ".3f"),
        ("step (ms)", "step_ms", ".0f"),
        ("peak memory (MiB)", "peak_memory_mb", ".0f"),
    ),
    "resume": (
        ("space", "space", ""),
        ("deterministic", "deterministic", ""),
        ("largest difference of a logit", "largest_difference", ".1e"),
    ),
    "losses": (
        ("loss", "loss", ""),
        ("CPU", "cpu", ".5f"),
        ("GPU", "device", ".5f"),
        ("gradients, relative difference", "gradient_difference", ".1e"),
    ),
    "search step": (
        ("variant", "variant", ""),
        ("size", "size", ""),
        ("batch", "batch", ""),
        ("step (ms)", "step_ms", ".0f"),
        ("launches", "launches", ""),
        ("synchronisations", "synchronisations", ""),
        ("GPU busy", "busy_share", ".0%"),
        ("peak memory (MiB)", "peak_memory_mb", ".0f"),
    ),
    "graphs": (
        ("steps", "steps", ""),
        ("weights", "weights", ""),
        ("largest difference of a weight", "largest_difference", ".1e"),
    ),
    "latency": (
        ("backend", "backend", ""),
        ("entries", "entries", ""),
        ("networks", "networks", ""),
        ("Pearson", "pearson", ".4f"),
        ("Spearman", "spearman", ".4f"),
        ("error (%)", "mape", ".1f"),
        ("noise: Pearson", "noise_pearson", ".4f"),
        ("noise: error (%)", "noise_mape", ".1f"),
        ("zoomed conv to conv", "zoomed_to_conv", ".2f"),
        ("shapes where conv is slower", "conv_slower", ".0%"),
    ),
    "sweep": (
        ("channels a group", "width", ""),
        ("type", "dtype", ""),
        ("warps", "warps", ""),
        ("stages", "stages", ""),
        ("positions", "positions", ""),
        ("used", "used", ""),
        ("ms", "ms", ".3f"),
        ("integer, cuDNN (ms)", "integer_ms", ".3f"),
        ("ratio", "ratio", ".2f"),
    ),
    "loader": (
        ("workers", "workers", ""),
        ("cached", "cached", ""),
        ("size", "size", ""),
        ("crop", "crop", ""),
        ("images/s", "images_per_s", ".1f"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    update(DOCUMENT, lambda text: with_tables(text, RESULTS), "python -m scripts.first_gpu.tables", check=options.check)


def with_tables(document: str, results: Path) -> str:
    """The document with all tables of the session between their comments, ``<!-- begin: first gpu TABLE -->``."""
    known = [record for path in sorted(results.glob("*.jsonl")) for record in records(path) if not record["dry_run"]]
    for name in TABLES:
        document = with_block(document, f"first gpu {name}", table(name, known))
    return document


def table(name: str, known: Sequence[Mapping[str, Any]]) -> str:
    """The rows of one table, and what failed; where they were measured stands below."""
    lines = [record for record in known if record["table"] == name]
    finished = {record["step"]: record for record in lines if record["error"] is None}
    failed = {record["step"]: record["error"] for record in lines if record["step"] not in finished}
    rows = [row for record in finished.values() for row in record["rows"]]
    columns = TABLES[name]
    cells = [[_cell(row.get(key), form) for _, key, form in columns] for row in rows]
    parts = [markdown_table([heading for heading, _, _ in columns], cells)] if cells else [NOTHING]
    parts += [f"Failed: {step} ({error})." for step, error in failed.items()]
    places = {_place(record["environment"]) for record in finished.values()}
    return "\n\n".join([*parts, *sorted(places)])


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "x".join(map(str, value))
    return f"{value:{form}}" if form else str(value)


def _place(environment: Mapping[str, Any]) -> str:
    return f"{environment['device']}, torch {environment['torch']}, CUDA {environment['cuda']}"


if __name__ == "__main__":
    main()
