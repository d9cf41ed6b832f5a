"""Drawing of a derived network of dilated blocks: the rates of each block and its field of view."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Any

import networkx as nx
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from dnas.report.style import BLUE, INK, MUTED, new_figure, styled

_LIGHT, _DARK = "#e3eef7", "#5aa9dc"
_END_FILL = "#e8ebef"
_NODE_INK, _NODE_EDGE = "#12171d", "#7b8694"
_WIDTH, _HEIGHT = 0.8, 0.62
_STACK = 1.05


@styled
def dilated_drawing(graph: nx.DiGraph, title: str = "") -> Figure:
    """Draw dilated blocks from stem to head with the rates of their branches; below, the field of view of their output.

    ``graph`` has nodes with ``label``, ``position`` (column), ``field_of_view`` (pixels, except for the head) and, for
    blocks, ``rates``. Parallel blocks (such as those of an ASPP) are stacked; the largest field of view is shown.
    """
    heights = _heights(graph)
    columns = max(int(data["position"]) for _, data in graph.nodes(data=True)) + 1
    top = max(heights.values()) + 0.85
    figure = new_figure(max(5.6, 0.74 * columns + 0.9), 0.66 * (2 * top) + 2.1)
    blocks, fields = figure.subplots(2, 1, sharex=True, height_ratios=[0.66 * 2 * top, 2.0])
    blocks.set_axis_off()
    blocks.set_xlim(-0.6, columns - 0.4)
    blocks.set_ylim(-top, top)
    largest = max((max(data["rates"]) for _, data in graph.nodes(data=True) if data.get("rates")), default=1)
    for start, end in graph.edges:
        _draw_arrow(blocks, *((int(graph.nodes[node]["position"]), heights[node]) for node in (start, end)))
    for node, data in graph.nodes(data=True):
        _draw_block(blocks, int(data["position"]), heights[node], data, largest)
    _draw_fields(fields, graph)
    if title:
        blocks.set_title(title)
    return figure


def is_dilated(graph: nx.DiGraph) -> bool:
    """Whether a graph has dilated blocks, so that :func:`dilated_drawing` can draw it."""
    return any(data.get("rates") for _, data in graph.nodes(data=True))


def _heights(graph: nx.DiGraph) -> dict[Hashable, float]:
    """The y of each node: nodes of a column are stacked, centred at 0."""
    stacks: dict[int, list[Hashable]] = defaultdict(list)
    for node, data in graph.nodes(data=True):
        stacks[int(data["position"])].append(node)
    return {
        node: _STACK * ((len(nodes) - 1) / 2 - index) for nodes in stacks.values() for index, node in enumerate(nodes)
    }


def _draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate(
        "",
        (end[0] - _WIDTH / 2, end[1]),
        xytext=(start[0] + _WIDTH / 2, start[1]),
        arrowprops={"arrowstyle": "-|>,head_length=0.32,head_width=0.19", "color": INK, "lw": 1.3, "shrinkA": 0},
        zorder=1,
    )


def _draw_block(axes: Axes, x: float, y: float, data: Mapping[str, Any], largest: int) -> None:
    """A box with the rates of its branches (darker blue for larger ones) and its name above."""
    rates = data.get("rates", ())
    ramp = colors.LinearSegmentedColormap.from_list("rates", [_LIGHT, _DARK])
    fill = colors.to_hex(ramp((max(rates) - 1) / max(1, largest - 1))) if rates else _END_FILL
    box = FancyBboxPatch(
        (x - _WIDTH / 2, y - _HEIGHT / 2),
        _WIDTH,
        _HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=fill,
        edgecolor=_NODE_EDGE,
        linewidth=1.0,
        zorder=3,
    )
    axes.add_patch(box)
    if not rates:
        axes.text(x, y, str(data["label"]), ha="center", va="center", fontsize=8, color=_NODE_INK, zorder=4)
        return
    size = 10 if len(rates) <= 2 else 7
    axes.text(
        x,
        y,
        " | ".join(map(str, rates)),
        ha="center",
        va="center",
        fontsize=size,
        fontweight="bold",
        color=_NODE_INK,
        zorder=4,
    )
    name = str(data["label"])
    shown = name if len(name) <= 12 else f"…{name[-11:]}"
    axes.text(x, y + _HEIGHT / 2 + 0.07, shown, ha="center", va="bottom", fontsize=6.4, color=MUTED)


def _draw_fields(axes: Axes, graph: nx.DiGraph) -> None:
    """Bars of the field of view after each column, in pixels."""
    pixels: dict[int, int] = {}
    for _, data in graph.nodes(data=True):
        if data.get("field_of_view"):
            column = int(data["position"])
            pixels[column] = max(pixels.get(column, 0), int(data["field_of_view"]))
    axes.bar(list(pixels), list(pixels.values()), width=0.56, color=BLUE, linewidth=0)
    for column, value in pixels.items():
        axes.annotate(
            str(value), (column, value), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7.5, color=INK
        )
    axes.set_ylim(0, 1.18 * max(pixels.values(), default=1))
    axes.set_xticks([])
    axes.grid(visible=False, axis="x")
    axes.set_title("Field of view after each block (pixels)", fontsize=8.5)
