"""A network with whole dilation rates as a directed graph of its dilated blocks, from which it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from dnas.ops import layers_by_block
from dnas.receptive_field import Field, fields_around

_STEM, _HEAD = "stem", "head"
_SIZE = (64, 64)
"""What the network is run on: all our networks take it."""


def dilated_graph(network: nn.Module, rates: Mapping[str, int]) -> nx.DiGraph:
    """Nodes: "stem" (all before), the blocks whose layers ``rates`` names, and "head" (all behind).

    Edges: what feeds what, without those that a longer way makes superfluous, such as shortcuts. Nodes have ``label``,
    ``operator`` (stem, dilated or head), ``position`` (column) and, but for the head, ``field_of_view`` (pixels, behind
    the node) and ``scale`` (of its output); blocks have ``rates`` and ``channels`` too.
    """
    fields = fields_around(network, rates, input_size=_SIZE)
    connections = _connections(network, fields)
    graph = _of_blocks(network, rates, fields, layers_by_block(fields), connections)
    if not nx.is_directed_acyclic_graph(graph):
        # Names such as `features.0` and `features.2` look like one block, but another one may stand between them.
        graph = _of_blocks(network, rates, fields, {name: [name] for name in fields}, connections)
    return _in_columns(graph)


def _of_blocks(
    network: nn.Module,
    rates: Mapping[str, int],
    fields: Mapping[str, tuple[Field, Field]],
    blocks: Mapping[str, list[str]],
    connections: Iterable[tuple[str, str]],
) -> nx.DiGraph:
    """The graph with all its edges, its nodes without columns."""
    graph = nx.DiGraph()
    first = min((before for before, _ in fields.values()), key=_reach)
    graph.add_node(_STEM, label="stem", operator="stem", **_seen(first))
    for block, layers in blocks.items():
        behind = max((fields[name][1] for name in layers), key=_reach)
        graph.add_node(
            block,
            label=block.rpartition("backbone.")[2],
            operator="dilated",
            rates=tuple(rates[name] for name in layers),
            channels=sum(_channels(network, name) for name in layers),
            **_seen(behind),
        )
    graph.add_node(_HEAD, label="head", operator="head")
    node_of = {name: block for block, layers in blocks.items() for name in layers} | {_STEM: _STEM, _HEAD: _HEAD}
    pairs = ((node_of[source], node_of[target]) for source, target in connections)
    graph.add_edges_from((start, end) for start, end in pairs if start != end)
    return graph


def _in_columns(graph: nx.DiGraph) -> nx.DiGraph:
    """The graph without superfluous edges, and each node's column."""
    reduced: nx.DiGraph = nx.transitive_reduction(graph)
    reduced.add_nodes_from(graph.nodes(data=True))
    for column, generation in enumerate(nx.topological_generations(reduced)):
        for node in generation:
            reduced.nodes[node]["position"] = column
    return reduced


def _reach(field: Field) -> Fraction:
    return field.kernel


def _seen(field: Field) -> dict[str, Any]:
    return {"field_of_view": field.pixels, "scale": round(field.stride)}


def _channels(network: nn.Module, name: str) -> int:
    layer = network.get_submodule(name)
    return layer.out_channels if isinstance(layer, nn.Conv2d) else 0


def _connections(network: nn.Module, layers: Iterable[str]) -> list[tuple[str, str]]:
    """Which of ``layers`` reads what which other one has made, directly or through anything else but these layers.

    Read off the graph that autograd keeps of one run; "stem" stands for the image, "head" for the outputs.
    """
    made: dict[Any, str] = {}
    image = torch.zeros(1, 3, *_SIZE, requires_grad=True)
    with ExitStack() as hooks, torch.enable_grad():
        for name in layers:
            hooks.callback(network.get_submodule(name).register_forward_hook(_maker(made, name)).remove)
        outputs = network.eval()(image * 1.0)
    starts = {_HEAD: [tensor.grad_fn for tensor in _tensors(outputs)]}
    starts |= {name: [function for function, _ in node.next_functions] for node, name in made.items()}
    return [(source, target) for target, nodes in starts.items() for source in _sources(nodes, made, image)]


def _maker(made: dict[Any, str], name: str) -> Callable[[nn.Module, tuple[object, ...], Tensor], None]:
    def record(module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        made[output.grad_fn] = name

    return record


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    return list(chain.from_iterable(_tensors(part) for part in parts))


def _sources(nodes: Iterable[Any], made: Mapping[Any, str], image: Tensor) -> set[str]:
    """The makers, or the image, that are first met on the ways back from ``nodes``."""
    waiting, seen, found = list(nodes), set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            found.add(made[node])
        elif getattr(node, "variable", None) is image:
            found.add(_STEM)
        else:
            waiting += [function for function, _ in node.next_functions]
    return found
