"""Comparison of many latency tables in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from dnas.latency.table import LatencyTable, TableDiff


def diff_matrix(tables: Sequence[LatencyTable]) -> dict[str, list[list[Any]]]:
    """All pairs of tables compared: (row, column) values, None for a pair of fewer than two common entries.

    entries: number of common entries; ratio: median of column / row; median_relative_difference: as that of
    :class:`TableDiff`; spearman: rank correlation of the latencies.
    """
    rows: dict[str, list[list[Any]]] = {"entries": [], "ratio": [], "median_relative_difference": [], "spearman": []}
    for first in tables:
        found = [first.diff(second) for second in tables]
        ratios = [list(diff.ratios.values()) for diff in found]
        known = [len(values) > 1 for values in ratios]
        rows["entries"].append([len(diff.latencies_ms) for diff in found])
        rows["ratio"].append([float(np.median(r)) if ok else None for r, ok in zip(ratios, known, strict=True)])
        rows["median_relative_difference"].append(
            [diff.median_relative_difference if ok else None for diff, ok in zip(found, known, strict=True)]
        )
        rows["spearman"].append([_spearman(diff) if ok else None for diff, ok in zip(found, known, strict=True)])
    return rows


def _spearman(diff: TableDiff) -> float | None:
    """Rank correlation of the shared entries; None if the latencies of one table are all equal."""
    pairs = np.array(list(diff.latencies_ms.values()), dtype=np.float64)
    if np.ptp(pairs, axis=0).min() == 0:
        return None
    return float(scipy.stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
