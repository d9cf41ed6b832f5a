"""Drawing of a derived multi-branch network: columns are layers, rows are resolutions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from derive.multi_branch.routing import Box, Route, best_route, rounded_path
from dnas.report.style import AMBER, BLUE, GREEN, GRID, INK, MUTED, PURPLE, VERMILION, new_figure, styled

# Fill colour, short and long name. Blue: full resolution; orange: zoomed; darker: two convolutions.
_OPERATORS: Mapping[str, tuple[str, str, str]] = {
    "stem": ("#cfd5de", "stem", "stem"),
    "skip": ("#ffffff", "skip", "skip"),
    "conv": ("#a9d4f0", "conv", "conv"),
    "conv_x2": ("#5aa9dc", "conv×2", "conv × 2"),
    "zoomed_conv": ("#fbd89b", "zoom", "zoomed conv"),
    "zoomed_conv_x2": ("#f0a340", "zoom×2", "zoomed conv × 2"),
    "fuse": ("#b5e2cc", "fuse", "fusion"),
    "head": ("#d9bddb", "head", "head"),
}
_OTHER_FILL = "#e8ebef"
_NODE_INK = "#12171d"
_NODE_EDGE = "#7b8694"
_BRANCH_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, AMBER)
_COLUMN, _STACK, _LANE_GAP = 1.0, 0.72, 0.55
_LEGEND_ROW = 0.19  # inches


def _branches(value: Any) -> tuple[str, ...]:
    """The branches of a node or an edge as strings; accepts a single value instead of a list."""
    if value is None:
        return ()
    items: Iterable[Any] = value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    return tuple(sorted({str(item) for item in items}, key=lambda text: (len(text), text)))


def _lanes(graph: nx.DiGraph) -> tuple[dict[int, float], dict[Hashable, float]]:
    """The y of each scale's lane and of each node; nodes of equal scale and position are stacked in the lane."""
    stacks: dict[tuple[int, int], list[Hashable]] = defaultdict(list)
    for node, data in graph.nodes(data=True):
        stacks[int(data["scale"]), int(data["position"])].append(node)
    scales = sorted({scale for scale, _ in stacks})
    centres, heights, top = {}, {}, 0.0
    for scale in scales:
        depth = max(len(nodes) for (lane, _), nodes in stacks.items() if lane == scale)
        half = _STACK * depth / 2
        centres[scale] = top - half
        top -= 2 * half + _LANE_GAP
    for (scale, _), nodes in stacks.items():
        ordered = sorted(nodes, key=lambda node: (_branches(graph.nodes[node].get("branches")), str(node)))
        for index, node in enumerate(ordered):
            heights[node] = centres[scale] + _STACK * ((len(nodes) - 1) / 2 - index)
    return centres, heights


def _boxes(graph: nx.DiGraph, heights: Mapping[Hashable, float]) -> dict[Hashable, Box]:
    """The box of each node; its height grows with the logarithm of the channels."""
    channels = {node: max(1, int(data.get("channels") or 1)) for node, data in graph.nodes(data=True)}
    low, high = math.log(min(channels.values())), math.log(max(channels.values()))
    boxes = {}
    for node, data in graph.nodes(data=True):
        share = (math.log(channels[node]) - low) / (high - low) if high > low else 0.5
        boxes[node] = Box(int(data["position"]) * _COLUMN, heights[node], 0.74, 0.4 + 0.2 * share)
    return boxes


def _draw_node(axes: Axes, box: Box, data: Mapping[str, Any], colour: str | None) -> None:
    operator = str(data.get("operator", ""))
    fill, short, _ = _OPERATORS.get(operator, (_OTHER_FILL, operator[:7], operator))
    patch = FancyBboxPatch(
        (box.x - box.width / 2, box.y - box.height / 2),
        box.width,
        box.height,
        boxstyle="round,pad=0,rounding_size=0.07",
        facecolor=fill,
        edgecolor=colour or _NODE_EDGE,
        linewidth=1.7 if colour else 1.0,
        linestyle=(0, (2.5, 1.5)) if operator == "skip" else "solid",
        zorder=3,
    )
    axes.add_patch(patch)
    axes.text(box.x, box.y + 0.085, short, ha="center", va="center", fontsize=6.6, color=_NODE_INK, zorder=4)
    if data.get("channels"):
        axes.text(
            box.x,
            box.y - 0.095,
            str(data["channels"]),
            ha="center",
            va="center",
            fontsize=7.6,
            fontweight="bold",
            color=_NODE_INK,
            zorder=4,
        )


def _draw_edge(axes: Axes, route: Route, colour: str, label: str) -> None:
    """An arrow along ``route`` with its label above the longest horizontal segment."""
    arrow = FancyArrowPatch(
        path=rounded_path(route),
        arrowstyle="-|>,head_length=3.2,head_width=1.9",
        shrinkA=0,
        shrinkB=0.6,
        linewidth=1.5,
        color=colour,
        zorder=2,
    )
    axes.add_patch(arrow)
    if label:
        (x0, y0), (x1, y1) = max(pairwise(route), key=lambda pair: abs(pair[0][0] - pair[1][0]))
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
        axes.annotate(label, middle, xytext=(0, 3), textcoords="offset points", ha="center", fontsize=6, color=MUTED)


def _edge_branches(graph: nx.DiGraph, start: Hashable, end: Hashable) -> tuple[str, ...]:
    given = _branches(graph.edges[start, end].get("branches"))
    if given:
        return given
    of_start, of_end = (_branches(graph.nodes[node].get("branches")) for node in (start, end))
    if not of_start or not of_end:
        return ()
    return tuple(branch for branch in of_start if branch in of_end)


def _add_legend(
    figure: Figure, axes: Axes, operators: Iterable[str], colours: Mapping[str, str], *, shared: bool
) -> None:
    """Add the legend below the drawing, with as many columns as fit the width of ``figure``."""
    present = set(operators)
    known = [name for name in _OPERATORS if name in present]
    handles: list[Patch | Line2D] = [
        Patch(facecolor=_OPERATORS[name][0], edgecolor=_NODE_EDGE, linewidth=0.8, label=_OPERATORS[name][2])
        for name in known
    ]
    handles += [Patch(facecolor=_OTHER_FILL, edgecolor=_NODE_EDGE, label=name) for name in sorted(present - set(known))]
    if shared:
        handles.append(Line2D([], [], color=INK, linewidth=1.8, label="shared by the branches"))
    handles += [
        Line2D([], [], color=colour, linewidth=1.8, label=f"branch 1/{name}") for name, colour in colours.items()
    ]
    for columns in range(min(len(handles), 6), 0, -1):
        legend = axes.legend(
            handles=handles,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.02),
            ncols=columns,
            columnspacing=1.4,
            handlelength=1.5,
            fontsize=9,
        )
        box = legend.get_tightbbox()
        if box is None or box.width <= figure.bbox.width:
            break
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * max(0, rows - 2))  # two rows fit already


@styled
def architecture_drawing(graph: nx.DiGraph, title: str = "") -> Figure:
    """Draw a derived network: x is the layer, y the scale, fill the operator; height and number are the channels.

    ``graph``: see :func:`derive.multi_branch.graph.architecture_graph`. Arrows have the colour of their branch, or that
    of the text if several branches share them. Raises ``ValueError`` for a graph without nodes.
    """
    if not graph:
        raise ValueError("the graph has no nodes")
    centres, heights = _lanes(graph)
    boxes = _boxes(graph, heights)
    left, right = min(box.x for box in boxes.values()), max(box.x for box in boxes.values())
    top, bottom = max(box.y for box in boxes.values()) + 0.5, min(box.y for box in boxes.values()) - 0.5
    figure = new_figure(max(6.0, 0.66 * (right - left + 2.4)), 0.66 * (top - bottom) + 0.95)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(left - 1.5, right + 0.6)
    axes.set_ylim(bottom, top)
    for scale, height in centres.items():
        axes.axhline(height, color=GRID, linewidth=1, zorder=0)
        axes.text(
            left - 0.65, height, f"1/{scale}", ha="right", va="center", fontsize=9, fontweight="bold", color=MUTED
        )
    names = dict.fromkeys(branch for _, data in graph.nodes(data=True) for branch in _branches(data.get("branches")))
    ordered = sorted(names, key=lambda text: (len(text), text))
    colours = {name: _BRANCH_COLOURS[index % len(_BRANCH_COLOURS)] for index, name in enumerate(ordered)}
    several = len(colours) > 1

    def colour_of(branches: tuple[str, ...]) -> str | None:
        return colours[branches[0]] if several and len(branches) == 1 else None

    for start, end, data in graph.edges(data=True):
        colour = colour_of(_edge_branches(graph, start, end)) or INK
        route = best_route(boxes[start], boxes[end], boxes.values())
        _draw_edge(axes, route, colour, str(data.get("channels") or ""))
    for node, data in graph.nodes(data=True):
        _draw_node(axes, boxes[node], data, colour_of(_branches(data.get("branches"))))
    if title:
        axes.set_title(title)
    operators = [str(data.get("operator", "")) for _, data in graph.nodes(data=True)]
    _add_legend(figure, axes, operators, colours if several else {}, shared=several)
    return figure
