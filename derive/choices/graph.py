"""The graph of a derived network: its units, and the maps between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dnas.choices import ChoiceNetwork
from search_spaces.choices import ChoiceSpace

MOST_NODES = 24


def unit_graph(space: ChoiceSpace[Any], indices: Mapping[str, int]) -> nx.DiGraph:
    """Nodes: the units that run, with ``label``; edges: a unit reads the other's map.

    With more than 24 units, those of one module are one node, at the largest depth that gives few enough nodes.
    """
    complete = {name: indices.get(name, 0) for name in space.priced.sizes}
    channels = {unit.path: unit.spec(complete).out_channels for unit in space.priced.units if unit.runs(complete)}
    edges = _connections(space.supernet(), complete, list(channels), space.example())
    depth = max((path.count(".") + 1 for path in channels), default=1)
    for level in range(depth, 0, -1):
        graph = _grouped(channels, edges, level)
        if graph.number_of_nodes() <= MOST_NODES and nx.is_directed_acyclic_graph(graph):
            return graph
    return _grouped(channels, edges, depth)


def _grouped(channels: Mapping[str, int], edges: Iterable[tuple[str, str]], level: int) -> nx.DiGraph:
    graph = nx.DiGraph()

    def group(path: str) -> str:
        return ".".join(path.split(".")[:level])

    for path, count in channels.items():
        graph.add_node(group(path), label=f"{group(path)}\n{count} channels")
    graph.add_edges_from((group(one), group(other)) for one, other in edges if group(one) != group(other))
    return graph


def _connections(
    network: ChoiceNetwork, indices: Mapping[str, int], paths: Iterable[str], example: Tensor
) -> list[tuple[str, str]]:
    """Pairs of units of which the second reads a map of the first, from autograd's graph of one pass."""
    producers: dict[Any, str] = {}
    inputs: dict[str, list[Any]] = {}
    with ExitStack() as hooks, torch.enable_grad():
        for path in paths:
            module = network.network.get_submodule(path)
            hooks.callback(module.register_forward_hook(_hook(producers, inputs, path)).remove)
        network.eval()(torch.zeros(example.shape).requires_grad_(), network.one_hot(indices))
    found = []
    for target, starts in inputs.items():
        stack, seen = list(starts), set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in producers:
                found.append((producers[node], target))
            else:
                stack += [function for function, _ in node.next_functions]
    return found


def _hook(producers: dict[Any, str], inputs: dict[str, list[Any]], path: str) -> Callable[..., None]:
    return partial(_record, producers, inputs, path)


def _record(
    producers: dict[Any, str], inputs: dict[str, list[Any]], path: str, module: nn.Module, args: Any, out: Any
) -> None:
    inputs.setdefault(path, []).extend(leaf.grad_fn for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            producers.setdefault(leaf.grad_fn, path)
