"""The picture of a study: mIoU against latency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from dnas.report.style import INK, MUTED, SERIES, label_axes, new_figure, styled
from scripts.study.analysis import means

Rows = Sequence[dict[str, Any]]
_MARKERS = ("o", "s", "^", "v", "P")


@styled
def pareto(random: Rows, derived: Rows, hand_made: Rows, score: str = "test_miou") -> Figure:
    """MIoU against latency: a cloud of random networks, every derived one, and hand-made ones as means of seeds.

    Latencies are measured if any random networks have been measured, and predicted otherwise. Networks without such a
    latency are left out; hand-made ones have measured ones only.
    """
    measured = any(row["measured_ms"] is not None for row in random)
    if measured:
        random, derived = ([row for row in rows if row["measured_ms"] is not None] for rows in (random, derived))
    key = "measured_ms" if measured else "predicted_ms"
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    cloud = means(random, score)
    axes.scatter(
        [row[key] for row in cloud],
        [100 * row[score] for row in cloud],
        s=14,
        color=MUTED,
        alpha=0.6,
        linewidths=0,
        label="random networks",
    )
    for index, method in enumerate(dict.fromkeys(row["method"] for row in derived)):
        groups: dict[float, list[dict[str, Any]]] = {}
        for row in derived:
            if row["method"] == method:
                groups.setdefault(row["target_ms"], []).append(row)
        axes.scatter(
            [row[key] for group in groups.values() for row in group],
            [100 * row[score] for group in groups.values() for row in group],
            s=34,
            marker=_MARKERS[index % len(_MARKERS)],
            color=SERIES[index % len(SERIES)],
            linewidths=0.5,
            edgecolors="white",
            label=f"derived, {method}",
        )
    placed = [row for row in means(hand_made, score) if row["measured_ms"] is not None]
    if placed and measured:
        axes.scatter(
            [row["measured_ms"] for row in placed],
            [100 * row[score] for row in placed],
            s=36,
            marker="D",
            color=INK,
            linewidths=0,
            label="hand-made",
        )
        for row in placed:
            axes.annotate(
                row["network"],
                (row["measured_ms"], 100 * row[score]),
                xytext=(5, -9),
                textcoords="offset points",
                fontsize=7,
                color=INK,
            )
    axes.legend(loc="best")
    split = "test" if score.startswith("test") else "validation"
    label_axes(
        axes,
        title=f"Networks trained by one recipe, {split} images",
        x=f"{'measured' if measured else 'predicted'} latency (ms)",
        y="mIoU (%)",
    )
    return figure
