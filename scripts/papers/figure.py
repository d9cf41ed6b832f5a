"""The mIoU of a table's rows over another of their figures, measured and as printed: the papers' first figures."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from dnas.errors import UserError
from dnas.report.style import BLUE, MUTED, label_axes, new_figure, styled
from scripts.papers.config import Column, Table
from scripts.papers.run import UNITS

Points = dict[str, tuple[float, float]]
"""(x, y) by the label of the row."""


def measured_points(table: Table, results: Sequence[Mapping[str, Any]], x: Column, y: Column) -> Points:
    """The means over the seeds of the rows that have both, in the units of the table."""
    points: Points = {}
    for label in table.rows:
        rows = [found for found in results if found["label"] == label]
        values = [[row[column] / UNITS[column][1] for row in rows if row.get(column) is not None] for column in (x, y)]
        if all(values):
            points[label] = (statistics.mean(values[0]), statistics.mean(values[1]))
    return points


def printed_points(table: Table, x: Column, y: Column) -> Points:
    """What the paper prints of the rows of which it prints both."""
    points: Points = {}
    for label, row in table.rows.items():
        if x in row.printed and y in row.printed:
            points[label] = (_first_number(row.printed[x]), _first_number(row.printed[y]))
    return points


@styled
def against(table: Table, results: Sequence[Mapping[str, Any]], x: Column) -> Figure:
    """The mIoU (or reduced mIoU) over ``x``; :class:`UserError` if the table has no such column or no points yet."""
    scores: list[Column] = [column for column in table.columns if column in ("miou", "reduced_miou")]
    if x not in table.columns or not scores or x == scores[0]:
        raise UserError(
            f"--against {x}: {table.paper} has the columns {', '.join(table.columns)}; needs a mIoU and another"
        )
    measured, printed = measured_points(table, results, x, scores[0]), printed_points(table, x, scores[0])
    if not measured and not printed:
        raise UserError(f"--against {x}: no row has been measured, and the paper prints no figures")
    figure = new_figure(5.2, 3.6)
    axes = figure.subplots()
    for name, points, style in (
        ("paper", printed, {"color": MUTED, "marker": "x"}),
        ("here", measured, {"color": BLUE}),
    ):
        if points:
            axes.scatter(*zip(*points.values(), strict=True), label=name, s=28, **style)
        for label, place in points.items():
            axes.annotate(label, place, xytext=(4, 3), textcoords="offset points", fontsize=7, color=style["color"])
    axes.legend()
    label_axes(axes, title=table.paper, x=UNITS[x][0], y=UNITS[scores[0]][0])
    return figure


def _first_number(text: str) -> float:
    """The number that a printed figure begins with: ``78.13 ± 0.48`` is 78.13."""
    match = re.match(r"\d+(?:\.\d+)?", text)
    if match is None:
        raise ValueError(f"{text!r} does not begin with a number")
    return float(match[0])
