"""The report's section on how well the supernet ranks networks whose mIoU after a training is known."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure as Drawing

from dnas.report.blocks import Block, Figure, Section, Table
from dnas.report.style import label_axes, new_figure, styled, svg_text

Row = tuple[str, int, float, float]
"""Name, number of networks, Kendall's tau and Spearman's rho."""


@styled
def ranking_chart(points: Sequence[tuple[float, float, float]]) -> Drawing:
    """MIoU after a training alone against that with inherited weights; points are (ms, inherited, alone)."""
    figure = new_figure(5.4, 3.8)
    axes = figure.subplots()
    latencies, inherited, alone = zip(*points, strict=True)
    drawn = axes.scatter(
        [100 * value for value in inherited], [100 * value for value in alone], c=latencies, cmap="viridis", s=18
    )
    figure.colorbar(drawn, ax=axes, label="predicted latency (ms)")
    label_axes(axes, title="Supernet and training alone", x="mIoU in the supernet (%)", y="mIoU trained alone (%)")
    return figure


def ranking_section(points: Sequence[tuple[float, float, float]], rows: Sequence[Row]) -> Section:
    """The chart of the points and a table of correlations."""
    blocks: list[Block] = [
        Figure(
            svg=svg_text(ranking_chart(points)),
            caption="Each point is a network of the ground truth. A supernet that ranks well shows a rising line.",
            description="mIoU of networks trained alone against their mIoU with inherited weights",
        ),
        Table(
            header=("networks", "number", "Kendall's tau", "Spearman's rho"),
            rows=[(name, str(count), f"{tau:.2f}", f"{rho:.2f}") for name, count, tau, rho in rows],
            numeric=(1, 2, 3),
            caption="Rank correlation of both, over all networks and within bands of latency (10 % to each side).",
        ),
    ]
    lead = "How well the supernet ranks networks that were trained alone."
    return Section(title="Ranking", lead=lead, blocks=blocks)
