"""A latency table of a new device: a share measured, the other entries predicted from tables of other devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dnas.errors import UserError
from dnas.latency import LatencyTable, Measurement
from dnas.latency.prediction import FEWEST, Prediction, choose_entries, predict_entries, shared_entries
from dnas.latency.spec import InventoryItem
from search_spaces import SearchSpace

Measure = Callable[[Sequence[InventoryItem], Path], LatencyTable]
"""Measures operators on the new device and writes their table; continues one that exists."""


def predict_table(
    space: SearchSpace[Any],
    others: Sequence[LatencyTable],
    out: Path,
    measure: Measure,
    *,
    share: float = 0.1,
    largest_error: float = 0.05,
) -> tuple[LatencyTable, Prediction]:
    """Write the table ``out``, of which a ``share`` of the entries is measured; returns it with the prediction.

    The measured entries are kept in ``NAME.measured.json`` beside it, where a later call with a larger share continues.
    Predicted entries have 0 repetitions, and the notes of the table tell their error. Raises :class:`UserError` if the
    error on measured entries that were left out is above ``largest_error``, and if the other tables lack entries.
    """
    items = {item.spec.key: item for item in space.inventory()}
    tables = [{key: entry.median for key, entry in table.entries.items() if key in items} for table in others]
    shared = shared_entries(tables)
    if len(shared) < len(items) or len(shared) < FEWEST:
        raise UserError(
            f"{space.name}: {len(shared)} of its {len(items)} entries are in all of the other tables, expected all "
            f"(at least {FEWEST}); build complete tables of this space on the other devices"
        )
    partial = out.with_name(f"{out.stem}.measured.json")
    measured = measure([items[key] for key in choose_entries(tables, share)], partial)
    latencies = {key: entry.median for key, entry in measured.entries.items()}
    found = predict_entries(latencies, tables)
    if found.error > largest_error:
        raise UserError(
            f"{out}: not written: entries that were left out are predicted with an error of {100 * found.error:.1f} % "
            f"({found.method}), more than {100 * largest_error:g} %; measure more with a larger --share "
            "(what is measured is kept), or all with dnas latency build"
        )
    names = ", ".join(sorted({others[index].provenance.device.name for index in found.devices}))
    notes = (
        f"{len(found.latencies)} of {len(items)} entries are predicted from {names} ({found.method}), with an error of "
        f"{100 * found.error:.1f} % on entries left out"
    )
    predicted = {key: _predicted(value, found.error) for key, value in found.latencies.items()}
    table = LatencyTable(dataclasses.replace(measured.provenance, notes=notes), {**measured.entries, **predicted}, out)
    table.save(out)
    return table, found


def _predicted(latency_ms: float, error: float) -> Measurement:
    """A predicted entry, whose percentiles tell the error."""
    return Measurement(latency_ms, latency_ms * (1 - error), latency_ms * (1 + error), repetitions=0, rounds=0)
