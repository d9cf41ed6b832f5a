"""The directed graph of a multi-branch network, for drawing."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from dnas.networks.multi_branch import MultiBranchSpec, scales_below, share_prefixes


def architecture_graph(spec: MultiBranchSpec, layers: Sequence[Sequence[int | None]]) -> nx.DiGraph:
    """Nodes: stem, cells (shared ones once), fusions ("fuse") and head; edges: feature maps with their ``channels``.

    Nodes have ``label``, ``operator``, ``scale`` (of the output), ``position`` (column: 1 plus the supernet's layer
    from ``layers``, or plus the depth if that is None), ``channels`` and ``branches`` (final scales of the branches
    that contain them).
    """
    graph = nx.DiGraph()
    nodes, paths = share_prefixes(spec)
    stem_channels = 8 * spec.end_ratio
    used = range(len(spec.branches))
    scales = tuple(branch.scale for branch in spec.branches)
    graph.add_node("stem", label="stem", operator="stem", scale=8, position=0, channels=stem_channels, branches=scales)
    for index, node in enumerate(nodes):
        branches = tuple(branch for branch in used if index in paths[branch])
        depth = paths[branches[0]].index(index)
        layer = layers[branches[0]][depth]
        graph.add_node(
            f"cell{index}",
            label=str(node.cell.channels),
            operator=node.cell.operator,
            scale=node.cell.out_scale,
            position=1 + (depth if layer is None else layer),
            channels=node.cell.channels,
            branches=tuple(scales[branch] for branch in branches),
        )
        parent = "stem" if node.parent < 0 else f"cell{node.parent}"
        graph.add_edge(parent, f"cell{index}", channels=node.cell.in_channels)
    column = max((data["position"] for _, data in graph.nodes(data=True)), default=0) + 1
    ends = []
    for branch, path in enumerate(paths):
        last_at = {8: "stem"} | {nodes[index].cell.out_scale: f"cell{index}" for index in path}
        scale = spec.branches[branch].scale
        current, channels = last_at[scale], spec.branches[branch].channels
        for step, finer in enumerate(scales_below(scale)):
            name = f"fuse{branch}_{finer}"
            graph.add_node(
                name,
                label=str(finer * spec.end_ratio),
                operator="fuse",
                scale=finer,
                position=column + step,
                channels=finer * spec.end_ratio,
                branches=(scale,),
            )
            graph.add_edge(current, name, channels=channels)
            skip = spec.branches[branch].skip_channels(finer, stem_channels)
            graph.add_edge(last_at[finer], name, channels=skip)
            current, channels = name, finer * spec.end_ratio
        ends.append((current, channels))
    position = 1 + max(data["position"] for _, data in graph.nodes(data=True))
    channels = sum(channels for _, channels in ends)
    graph.add_node(
        "head", label="head", operator="head", scale=8, position=position, channels=channels, branches=scales
    )
    for end, channels in ends:
        graph.add_edge(end, "head", channels=channels)
    return graph
