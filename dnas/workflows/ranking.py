"""How well the weights of a search rank networks whose mIoU is known from training them alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.stats

from derive import TABLE, Architecture, Judge, architecture_from
from dnas.config import Field, parse_config, record
from dnas.errors import UserError
from dnas.json_lines import read_lines
from dnas.latency import LatencyTable
from dnas.progress import Progress
from dnas.runs import RunFolder
from dnas.runs.configurations import search_configuration
from dnas.workflows.derivation import deriver_of_run
from search_spaces import load_space, preset_names

BAND = 0.1
"""Half the width of a band of latencies, relative to its middle."""

FEWEST = 10
"""Networks that a band must have."""


@dataclass(frozen=True)
class Correlation:
    """Kendall's tau and Spearman's rho between two scores of ``networks`` networks."""

    networks: int
    tau: float
    rho: float


@dataclass(frozen=True)
class Ranking:
    """Correlations of the mIoU with inherited weights and after a training alone, overall and by band of latency.

    ``points``: (predicted ms, mIoU with inherited weights, mIoU after a training) of every network. ``bands``: by the
    middle of the band in ms; networks within 10 % of it.
    """

    points: Sequence[tuple[float, float, float]]
    overall: Correlation
    bands: Mapping[float, Correlation]


@record
class _Row:
    """A row of a ground truth."""

    architecture: dict[str, Any]
    predicted_ms: Annotated[float, Field(ge=1e-6, le=1e6)]
    val_miou: Annotated[float, Field(ge=0, le=100)]


def read_ground_truth(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines with architecture, predicted_ms and val_miou; several seeds are averaged.

    Raises :class:`UserError` for a file without such rows.
    """
    wanted = ("architecture", "predicted_ms", "val_miou")
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a ground truth, JSON lines with the keys {', '.join(wanted)}")
    by_network: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(read_lines(path, "ground truth"), start=1):
        row = line.record
        if row is None or not all(key in row for key in wanted):
            raise UserError(f"{path}: line {number}: expected a JSON object with the keys {', '.join(wanted)}")
        parse_config(_Row, row, f"{path}: line {number}")
        by_network.setdefault(str(row.get("network", row["architecture"])), []).append(row)
    if not by_network:
        raise UserError(f"{path}: holds no networks; expected JSON lines with the keys {', '.join(wanted)}")
    return [
        {**rows[0], "val_miou": sum(float(row["val_miou"]) for row in rows) / len(rows)} for rows in by_network.values()
    ]


def rows_of_search(rows: Sequence[Mapping[str, Any]], run: RunFolder) -> Sequence[Mapping[str, Any]]:
    """The rows of a ground truth that are networks of the space that was searched, or that do not name a space.

    Raises :class:`UserError` for fewer than two.
    """
    known = list(dict.fromkeys(str(row["space"]) for row in rows if "space" in row))
    same = {name for name in known if _has_networks_of(run, name)}
    found = [row for row in rows if "space" not in row or row["space"] in same]
    if len(found) < 2:
        others = ", ".join(name for name in known if name not in same)
        raise UserError(
            f"{run.path}: the ground truth has {len(found)} networks of the space {run.configuration.get('preset')}, "
            "expected at least 2" + (f"; it has networks of {others}" if others else "")
        )
    return found


def _has_networks_of(run: RunFolder, name: str) -> bool:
    """Whether the networks of the space ``name`` are those of the search, whose space may be from a file."""
    if name not in preset_names():
        return name == run.configuration.get("preset")
    searched, theirs = search_configuration(run).space, load_space(name).configuration()
    return all(searched.get(key) == theirs.get(key) for key in ("space", "network"))


def rank(rows: Sequence[Mapping[str, Any]], score: Callable[[Sequence[Architecture]], list[float]]) -> Ranking:
    """Compare ``score`` of the networks of a ground truth with their mIoU after a training."""
    scores = score([architecture_from(row["architecture"], "ground truth") for row in rows])
    points = [
        (float(row["predicted_ms"]), found, float(row["val_miou"])) for row, found in zip(rows, scores, strict=True)
    ]
    return Ranking(points, correlation(points), _bands(points))


def rank_networks(
    path: Path, rows: Sequence[Mapping[str, Any]], *, device: str = "auto", progress: Progress | None = None
) -> Ranking:
    """As :func:`rank`, by the weights of a finished search in the run folder ``path``.

    ``rows``: see :func:`rows_of_search`.
    """
    run, deriver = deriver_of_run(path)
    rows = rows_of_search(rows, run)
    table = LatencyTable.load(path / TABLE) if (path / TABLE).exists() else None
    judge = Judge.of_run(run, deriver, table, device=device, progress=progress)
    notes = [{"kind": "ground truth"}] * len(rows)
    return rank(rows, lambda networks: judge.miou(networks, "judging known networks", notes))


def correlation(points: Sequence[tuple[float, float, float]]) -> Correlation:
    """The correlation of the second and the third value."""
    _, first, second = zip(*points, strict=True)
    tau, rho = scipy.stats.kendalltau(first, second).statistic, scipy.stats.spearmanr(first, second).statistic
    return Correlation(len(points), float(tau), float(rho))


def _bands(points: Sequence[tuple[float, float, float]]) -> dict[float, Correlation]:
    """Adjacent bands over the range of latencies, those with enough networks."""
    latencies = np.array([point[0] for point in points])
    middle, found = float(latencies.min()) * (1 + BAND), {}
    while middle * (1 - BAND) <= latencies.max():
        within = [point for point in points if abs(point[0] / middle - 1) <= BAND]
        if len(within) >= FEWEST:
            found[round(middle, 3)] = correlation(within)
        middle *= (1 + BAND) / (1 - BAND)
    return found
