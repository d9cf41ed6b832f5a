"""The directed graph of a network's dilated blocks, for drawing."""

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
"""Input size for tracing the network; all our networks accept it."""


def dilated_graph(network: nn.Module, rates: Mapping[str, int]) -> nx.DiGraph:
    """Nodes: "stem" (all layers before), the blocks with layers in ``rates``, and "head" (all layers after).

    Edges: the transitive reduction of the data flow, so without shortcuts. Nodes have ``label``, ``operator`` (stem,
    dilated or head), ``position`` (column) and, except for the head, ``field_of_view`` (pixels) and ``scale`` of their
    output; blocks also have ``rates`` and ``channels``.
    """
    fields = fields_around(network, rates, input_size=_SIZE)
    connections = _connections(network, fields)
    graph = _block_graph(network, rates, fields, layers_by_block(fields), connections)
    if not nx.is_directed_acyclic_graph(graph):
        # Layers such as `features.0` and `features.2` are named like one block, but may have another between them.
        graph = _block_graph(network, rates, fields, {name: [name] for name in fields}, connections)
    return _with_columns(graph)


def _block_graph(
    network: nn.Module,
    rates: Mapping[str, int],
    fields: Mapping[str, tuple[Field, Field]],
    blocks: Mapping[str, list[str]],
    connections: Iterable[tuple[str, str]],
) -> nx.DiGraph:
    """The graph with all edges; nodes have no column yet."""
    graph = nx.DiGraph()
    first = min((before for before, _ in fields.values()), key=_reach)
    graph.add_node(_STEM, label="stem", operator="stem", **_output_attributes(first))
    for block, layers in blocks.items():
        after = max((fields[name][1] for name in layers), key=_reach)
        graph.add_node(
            block,
            label=block.rpartition("backbone.")[2],
            operator="dilated",
            rates=tuple(rates[name] for name in layers),
            channels=sum(_channels(network, name) for name in layers),
            **_output_attributes(after),
        )
    graph.add_node(_HEAD, label="head", operator="head")
    node_of = {name: block for block, layers in blocks.items() for name in layers} | {_STEM: _STEM, _HEAD: _HEAD}
    pairs = ((node_of[source], node_of[target]) for source, target in connections)
    graph.add_edges_from((start, end) for start, end in pairs if start != end)
    return graph


def _with_columns(graph: nx.DiGraph) -> nx.DiGraph:
    """The transitive reduction of the graph, with each node's column as ``position``."""
    reduced: nx.DiGraph = nx.transitive_reduction(graph)
    reduced.add_nodes_from(graph.nodes(data=True))
    for column, generation in enumerate(nx.topological_generations(reduced)):
        for node in generation:
            reduced.nodes[node]["position"] = column
    return reduced


def _reach(field: Field) -> Fraction:
    return field.kernel


def _output_attributes(field: Field) -> dict[str, Any]:
    return {"field_of_view": field.pixels, "scale": round(field.stride)}


def _channels(network: nn.Module, name: str) -> int:
    layer = network.get_submodule(name)
    return layer.out_channels if isinstance(layer, nn.Conv2d) else 0


def _connections(network: nn.Module, layers: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs (source, target) of ``layers`` where target reads the output of source without another one in between.

    Found in the autograd graph of one forward pass; "stem" stands for the image, "head" for the outputs.
    """
    producers: dict[Any, str] = {}
    image = torch.zeros(1, 3, *_SIZE, requires_grad=True)
    with ExitStack() as hooks, torch.enable_grad():
        for name in layers:
            hooks.callback(network.get_submodule(name).register_forward_hook(_producer_hook(producers, name)).remove)
        outputs = network.eval()(image * 1.0)
    starts = {_HEAD: [tensor.grad_fn for tensor in _tensors(outputs)]}
    starts |= {name: [function for function, _ in node.next_functions] for node, name in producers.items()}
    return [
        (source, target) for target, nodes in starts.items() for source in _nearest_producers(nodes, producers, image)
    ]


def _producer_hook(producers: dict[Any, str], name: str) -> Callable[[nn.Module, tuple[object, ...], Tensor], None]:
    def record(module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        producers[output.grad_fn] = name

    return record


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    return list(chain.from_iterable(_tensors(part) for part in parts))


def _nearest_producers(nodes: Iterable[Any], producers: Mapping[Any, str], image: Tensor) -> set[str]:
    """The nearest ancestors of ``nodes`` in the autograd graph that are layers of ``producers`` or the image."""
    stack, seen, found = list(nodes), set(), set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in producers:
            found.add(producers[node])
        elif getattr(node, "variable", None) is image:
            found.add(_STEM)
        else:
            stack += [function for function, _ in node.next_functions]
    return found
