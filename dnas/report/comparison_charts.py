"""Charts that compare several runs: the Pareto front, and curves side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dnas.report.curves import Floats, epoch_series
from dnas.report.data import Record
from dnas.report.pareto import pareto_front
from dnas.report.style import INK, MUTED, label_axes, legend_text, line_style, new_figure, styled

_COLUMNS = 3


class _Network(Protocol):
    @property
    def front(self) -> str: ...
    @property
    def miou(self) -> float | None: ...
    @property
    def latency_ms(self) -> float | None: ...
    @property
    def measured(self) -> bool: ...


class _Group(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def front(self) -> str: ...
    @property
    def miou(self) -> float: ...
    @property
    def miou_spread(self) -> float: ...
    @property
    def latency_ms(self) -> float: ...
    @property
    def latency_spread(self) -> float: ...
    @property
    def measured(self) -> bool: ...


@styled
def pareto_chart(networks: Sequence[_Network], groups: Sequence[_Group]) -> Figure:
    """Networks (latency in ms, mIoU in %) as small points, groups with error bars, and a line for each front."""
    figure = new_figure(7.6, 4.6)
    axes = figure.subplots()
    for index, front in enumerate(dict.fromkeys(group.front for group in groups)):
        style = line_style(index)
        members = [group for group in groups if group.front == front]
        single = [
            (one.latency_ms, 100 * one.miou)
            for one in networks
            if one.front == front and one.miou is not None and one.latency_ms is not None
            if one.measured == members[0].measured
        ]
        latencies, scores = zip(*single, strict=True)
        axes.scatter(latencies, scores, s=9, color=style["color"], alpha=0.45, linewidths=0)
        axes.errorbar(
            [group.latency_ms for group in members],
            [100 * group.miou for group in members],
            xerr=[group.latency_spread for group in members],
            yerr=[100 * group.miou_spread for group in members],
            fmt="o", ms=5.5, lw=0, elinewidth=1, color=style["color"],
        )  # fmt: skip
        x, y = zip(*pareto_front((group.latency_ms, group.miou) for group in members), strict=True)
        axes.plot(x, [100 * miou for miou in y], label=legend_text(front or "Pareto front"), lw=1.4, **style)
    for group in groups if len(groups) <= 12 else ():
        axes.annotate(
            group.name,
            (group.latency_ms, 100 * group.miou),
            xytext=(5, -9),
            textcoords="offset points",
            fontsize=7.5,
            color=INK,
        )
    axes.margins(x=0.12, y=0.12)
    axes.legend(loc="lower right")
    kind = "measured" if groups[0].measured else "predicted"
    label_axes(axes, title="Pareto front", x=f"{kind} latency (ms)", y="mIoU (%)")
    return figure


@styled
def compared_curves(curves: Sequence[tuple[str, str, Sequence[Record]]]) -> Figure:
    """Validation mIoU over the epochs of (kind, group, log): a panel for each kind, a line for each group."""
    by_kind: dict[str, dict[str, list[Sequence[Record]]]] = {}
    for kind, group, records in curves:
        by_kind.setdefault(kind, {}).setdefault(group, []).append(records)
    columns = min(_COLUMNS, len(by_kind))
    rows = -(-len(by_kind) // columns)
    figure = new_figure(3.5 * columns if columns > 1 else 5.4, 3.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (kind, groups) in zip(panels, by_kind.items(), strict=False):
        _panel(axes, groups)
        label_axes(axes, title=kind, x="epoch", y="mIoU (%)")
    for axes in panels[len(by_kind) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Axes, groups: Mapping[str, Sequence[Sequence[Record]]]) -> None:
    drawn = 0
    for index, (name, logs) in enumerate(groups.items()):
        x, low, mean, high = _over_seeds([_miou(records) for records in logs])
        if not len(x):
            continue
        style = line_style(index)
        axes.plot(x, mean, label=legend_text(name or "all"), marker="o" if len(x) <= 25 else None, ms=3.2, **style)
        if len(logs) > 1:
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        drawn += 1
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if drawn > 1:
        axes.legend(loc="best", fontsize=7)
    if not drawn:
        axes.text(0.5, 0.5, "no data yet", transform=axes.transAxes, ha="center", va="center", color=MUTED)
        axes.set_yticks([])


def _miou(records: Sequence[Record]) -> tuple[Floats, Floats]:
    """Epochs and mIoU in percent; of a search the mIoU of its first architecture."""
    logged = next((record["miou"] for record in records if record.get("miou") is not None), None)
    path = f"miou.{next(iter(logged))}" if isinstance(logged, Mapping) and logged else "miou"
    x, y = epoch_series(records, path)
    return x, 100 * y


def _over_seeds(series: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats, Floats, Floats]:
    """Epochs that all have, and the lowest, mean and highest value."""
    shared = sorted(set.intersection(*(set(x.tolist()) for x, _ in series)))
    values = np.array([[dict(zip(x.tolist(), y.tolist(), strict=True))[epoch] for epoch in shared] for x, y in series])
    if not shared:
        return (np.empty(0),) * 4
    return np.asarray(shared), values.min(axis=0), values.mean(axis=0), values.max(axis=0)
