"""Charts of results: predicted against measured latency, and IoU by class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from dnas.report.data import LatencyAgreement
from dnas.report.style import (
    BLUE,
    INK,
    MUTED,
    SERIES,
    VERMILION,
    label_axes,
    legend_text,
    new_figure,
    series_indices,
    styled,
)

_HATCHES = ("", "//", "..", "xx")


@styled
def agreement_scatter(agreement: LatencyAgreement) -> Figure:
    """Predicted (x) against measured (y) latency in ms of whole networks, with the line of equality."""
    predicted = np.asarray(agreement.predicted_ms, dtype=np.float64)
    measured = np.asarray(agreement.measured_ms, dtype=np.float64)
    if predicted.shape != measured.shape:
        raise ValueError(f"{len(predicted)} predicted and {len(measured)} measured latencies")
    figure = new_figure(5.2, 4.4)
    axes = figure.subplots()
    both = np.concatenate([predicted, measured])
    low, high = float(both.min()), float(both.max())
    margin = 0.06 * (high - low) or 0.1 * high or 1.0
    limits = (max(0.0, low - margin), high + margin)
    axes.plot(limits, limits, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="measured = predicted")
    axes.scatter(predicted, measured, s=26, color=BLUE, alpha=0.85, linewidths=0, label="sampled network")
    named = zip(agreement.networks, predicted, measured, strict=False)
    marked = [point for point in named if point[0] in agreement.marked]
    for name, x, y in marked:
        axes.scatter([x], [y], s=60, color=VERMILION, marker="D", linewidths=0)
        axes.annotate(name, (x, y), xytext=(-7, 5), textcoords="offset points", ha="right", fontsize=8, color=INK)
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    axes.legend(loc="upper left")
    statistics = [
        ("Pearson", agreement.pearson, "{:.3f}"),
        ("Spearman", agreement.spearman, "{:.3f}"),
        ("MAPE", agreement.mape, "{:.1f} %"),
    ]
    lines = [f"{name}  {pattern.format(value)}" for name, value, pattern in statistics if value is not None]
    axes.text(0.97, 0.04, "\n".join(lines), transform=axes.transAxes, ha="right", va="bottom", fontsize=9)
    label_axes(axes, title="Whole networks", x="predicted from the table (ms)", y="measured (ms)")
    return figure


@styled
def class_iou_bars(class_iou: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """Horizontal bars of IoU (%) by class, one per network; a class that does not occur is marked absent."""
    classes = list(dict.fromkeys(name for values in class_iou.values() for name in values))
    figure = new_figure(7.6, 1.0 + len(classes) * max(0.3, 0.17 * len(class_iou) + 0.06))
    axes = figure.subplots()
    thickness = 0.8 / max(1, len(class_iou))
    rows = np.arange(len(classes))
    colours = series_indices(list(class_iou))
    for index, (network, values) in enumerate(class_iou.items()):
        shares = [values.get(name) for name in classes]
        lengths = [100 * share if share is not None else 0.0 for share in shares]
        centres = rows - 0.4 + thickness * (index + 0.5)
        axes.barh(
            centres,
            lengths,
            height=thickness * 0.9,
            color=SERIES[colours[index] % len(SERIES)],
            hatch=_HATCHES[colours[index] % len(_HATCHES)],
            edgecolor="white",
            linewidth=0,
            label=legend_text(network),
        )
        for centre, share, length in zip(centres, shares, lengths, strict=True):
            text = "absent" if share is None else f"{length:.1f}"
            axes.annotate(
                text,
                (length, centre),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=MUTED,
            )
    axes.set_yticks(rows, classes)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.set_ylim(len(classes) - 0.45, -0.55)
    if len(class_iou) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(class_iou), borderaxespad=0.2)
    axes.set_xlabel("IoU (%)")
    return figure
