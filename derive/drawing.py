"""Default drawing of an architecture: its graph in layers."""

from __future__ import annotations

import networkx as nx
from matplotlib.figure import Figure

from dnas.report.style import GRID, INK, MUTED, new_figure, styled

_COLUMN, _ROW = 1.5, 0.8


@styled
def graph_drawing(graph: nx.DiGraph, title: str = "") -> Figure:
    """Nodes are boxes with their ``label``, in columns by topological generation; edges are arrows."""
    columns = list(nx.topological_generations(graph))
    widest = max((len(column) for column in columns), default=1)
    figure = new_figure(max(3.0, _COLUMN * len(columns)), max(1.2, _ROW * widest + 0.4))
    axes = figure.subplots()
    axes.set_axis_off()
    if title:
        axes.set_title(title, color=INK)
    places = {
        node: (float(column), (len(nodes) - 1) / 2 - row)
        for column, nodes in enumerate(columns)
        for row, node in enumerate(nodes)
    }
    for start, end in graph.edges:
        axes.annotate(
            "",
            places[end],
            places[start],
            arrowprops={"arrowstyle": "->", "color": MUTED, "shrinkA": 22, "shrinkB": 22},
        )
    for node, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": GRID}
        axes.text(
            x, y, str(graph.nodes[node].get("label", node)), ha="center", va="center", color=INK, bbox=box, size=8
        )
    axes.set_xlim(-0.7, len(columns) - 0.3)
    axes.set_ylim(-(widest - 1) / 2 - 0.7, (widest - 1) / 2 + 0.7)
    return figure
