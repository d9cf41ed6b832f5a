"""Curves of searches and retrainings, drawn from their logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dnas.report.data import Record
from dnas.report.style import MUTED, SHADE, label_axes, legend_text, line_style, new_figure, series_indices, styled

Floats = NDArray[np.float64]
_MOST_POINTS, _LARGEST = 300, 1e30


def field_of(record: Record, path: str) -> float:
    """The number at a dotted path of a log record; NaN where it is missing or null."""
    value: object = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    # Larger values, which only a damaged log has, would leave no room for the others on an axis.
    return float(value) if isinstance(value, (int, float)) and abs(value) <= _LARGEST else math.nan


def step_series(records: Sequence[Record], path: str) -> tuple[Floats, Floats]:
    """Time (in epochs, fractional) and value of every step that logs ``path``, averaged to at most 300 points."""
    times, values = [], []
    steps = (record for record in records if record.get("kind") == "step")
    for epoch, group in groupby(steps, key=lambda record: int(record["epoch"])):
        members = list(group)
        times += [epoch + (index + 1) / len(members) for index in range(len(members))]
        values += [field_of(record, path) for record in members]
    return _thin(*_finite(times, values))


def epoch_series(records: Sequence[Record], path: str) -> tuple[Floats, Floats]:
    """Number of finished epochs and value of every epoch that logs ``path``."""
    epochs = [record for record in records if record.get("kind") == "epoch"]
    return _finite([int(record["epoch"]) + 1 for record in epochs], [field_of(record, path) for record in epochs])


def waiting_note(records: Sequence[Record]) -> str:
    """A sentence on the share of the steps' time that was spent waiting for images; "" if the log does not say."""
    shares = epoch_series(records, "data_wait")[1]
    if not len(shares):
        return ""
    # The median: the first epoch starts workers and fills caches.
    return f"Of the time of the steps, {100 * np.median(shares):.0f} % was spent waiting for images."


def _finite(times: Sequence[float], values: Sequence[float]) -> tuple[Floats, Floats]:
    x, y = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    keep = np.isfinite(y)
    return x[keep], y[keep]


def _thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    if len(x) <= _MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _MOST_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _draw(axes: Axes, series: Mapping[str, tuple[Floats, Floats]]) -> None:
    """Draw the series that have points, each with its own colour and dash pattern; short ones with markers."""
    drawn = 0
    for index, (name, (x, y)) in zip(series_indices(list(series)), series.items(), strict=True):
        if len(x):
            marker, width = ("o" if len(x) <= 25 else None), (1.8 if len(x) <= 100 else 1.2)
            axes.plot(x, y, label=legend_text(name), marker=marker, markersize=3.2, lw=width, **line_style(index))
            drawn += 1
    if drawn > 1:
        axes.legend(loc="best")
    if not drawn:
        axes.text(0.5, 0.5, "no data yet", transform=axes.transAxes, ha="center", va="center", color=MUTED)
        axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def pretraining_epochs(records: Sequence[Record]) -> int:
    """Number of pretraining epochs in the log."""
    return 1 + max((int(record["epoch"]) for record in records if record.get("phase") == "pretrain"), default=-1)


def _percent(series: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    return series[0], 100 * series[1]


def _entropies(records: Sequence[Record], which: str) -> dict[str, tuple[Floats, Floats]]:
    names = {
        "α operator": "alpha",
        "β downsampling": "beta",
        "γ expansion ratio": "gamma",
    }
    return {label: epoch_series(records, f"entropy.{which}.{name}") for label, name in names.items()}


Panel = tuple[str, str, dict[str, tuple[Floats, Floats]]]
"""Title, label of the values, and series by name."""


def _names(value: object) -> list[str]:
    return list(value) if isinstance(value, Mapping) else []


def _search_panels(records: Sequence[Record]) -> list[Panel]:
    """The panels of a search; one without architecture parameters has three."""
    epochs = [record for record in records if record.get("kind") == "epoch"]
    names = list(dict.fromkeys(name for record in epochs for name in _names(record.get("miou"))))
    losses = {"weights": step_series(records, "loss_weights")}
    miou: Panel = (
        "mIoU of the supernet",
        "mIoU (%)",
        {name: _percent(epoch_series(records, f"miou.{name}")) for name in names},
    )
    if not any(record.get("entropy") for record in epochs):
        rate = {"learning rate": step_series(records, "learning_rate")}
        return [("Training loss", "loss", losses), miou, ("Learning rate", "learning rate", rate)]
    halves = {
        "weights (train A)": losses["weights"],
        "architecture (train B)": step_series(records, "loss_architecture"),
    }
    latencies = {
        "student, each step": step_series(records, "latency_ms"),
        "teacher, each epoch": epoch_series(records, "latency_ms.teacher"),
        "derived student": epoch_series(records, "derived.latency_ms"),
        "target": epoch_series(records, "derived.target_ms"),
    }
    return [
        ("Training loss", "loss", halves),
        miou,
        ("Predicted latency", "latency (ms)", latencies),
        ("Weight of the latency (λ)", "λ (loss per ms)", {"λ": step_series(records, "latency_weight")}),
        ("Entropy, student", "entropy (1 = undecided)", _entropies(records, "student")),
        ("Entropy, teacher", "entropy (1 = undecided)", _entropies(records, "teacher")),
    ]


@styled
def search_curves(records: Sequence[Record]) -> Figure:
    """Panels over epochs: losses, mIoU, predicted latency, lambda, and both architectures' entropies.

    A search without architecture parameters has three: loss, mIoU and learning rate. The pretraining phase is shaded.
    ``records`` is the search's log.
    """
    contents = _search_panels(records)
    rows = -(-len(contents) // 3)
    figure = new_figure(10.4, 2.8 * rows)
    panels = figure.subplots(rows, 3).ravel()
    pretraining, last = pretraining_epochs(records), max((int(r["epoch"]) + 1 for r in records), default=1)
    for axes, (title, unit, series) in zip(panels, contents, strict=True):
        _draw(axes, series)
        label_axes(axes, title=title, x="epoch", y=unit)
        axes.set_xlim(0, last)
        if title.startswith("Entropy"):
            axes.set_ylim(-0.03, 1.06)
        if pretraining:
            axes.axvspan(0, min(pretraining, last), color=SHADE, linewidth=0, zorder=0)
    if pretraining:
        panels[0].annotate(
            "pretraining",
            (min(pretraining, last) / 2, 0.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=7.5,
            color=MUTED,
        )
    return figure


def has_monitor(records: Sequence[Record]) -> bool:
    """Whether the log has the values that :func:`monitor_curves` draws."""
    return any(record.get("kind") == "epoch" and "skip_share" in record for record in records)


@styled
def monitor_curves(records: Sequence[Record]) -> Figure:
    """Three panels over epochs: cells that prefer a skip, mean expansion ratios, share of the latency gradient.

    ``records`` is the search's log.
    """
    figure = new_figure(10.4, 2.9)
    names, kinds = (
        ("student", "teacher"),
        {"α operator": "alpha", "β downsampling": "beta", "γ expansion ratio": "gamma"},
    )
    contents: list[tuple[str, str, dict[str, tuple[Floats, Floats]]]] = [
        (
            "Cells that prefer a skip",
            "share of cells (%)",
            {name: _percent(epoch_series(records, f"skip_share.{name}")) for name in names},
        ),
        ("Mean expansion ratio", "ratio", {name: epoch_series(records, f"mean_ratio.{name}") for name in names}),
        (
            "Latency share of the student's gradient",
            "share (%)",
            {
                label: _percent(epoch_series(records, f"latency_gradient.student.{kind}.share"))
                for label, kind in kinds.items()
            },
        ),
    ]
    pretraining, last = pretraining_epochs(records), max((int(r["epoch"]) + 1 for r in records), default=1)
    for axes, (title, unit, series) in zip(figure.subplots(1, 3), contents, strict=True):
        _draw(axes, series)
        label_axes(axes, title=title, x="epoch", y=unit)
        axes.set_xlim(0, last)
        if unit.endswith("(%)"):
            axes.set_ylim(-3, 106)
        if pretraining:
            axes.axvspan(0, min(pretraining, last), color=SHADE, linewidth=0, zorder=0)
    return figure


@styled
def retraining_curves(records: Mapping[str, Sequence[Record]]) -> Figure:
    """Three panels over epochs: training loss, validation mIoU and pixel accuracy of every retrained network.

    ``records`` maps a network's name to its log.
    """
    figure = new_figure(10.4, 2.9)
    panels = figure.subplots(1, 3)
    contents: list[tuple[str, str, Callable[[Sequence[Record]], tuple[Floats, Floats]]]] = [
        ("Training loss", "loss", lambda lines: step_series(lines, "loss")),
        ("Validation mIoU", "mIoU (%)", lambda lines: _percent(epoch_series(lines, "miou"))),
        ("Pixel accuracy", "correct pixels (%)", lambda lines: _percent(epoch_series(lines, "pixel_accuracy"))),
    ]
    for axes, (title, unit, read) in zip(panels, contents, strict=True):
        _draw(axes, {name: read(lines) for name, lines in records.items()})
        label_axes(axes, title=title, x="epoch", y=unit)
        axes.set_xlim(left=0)
    return figure
