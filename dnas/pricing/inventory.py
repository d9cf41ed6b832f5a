"""The inventory of a network with choices: every unit's signature at every shape that can reach it."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_unflatten

from dnas.choices import (
    Choice,
    ChoiceBatchNorm2d,
    ChoiceLayer,
    ChoiceNetwork,
    WidthChoice,
    named_choices,
    plain_network,
)
from dnas.errors import UserError
from dnas.latency.spec import InventoryItem, OperatorSpec
from dnas.pricing.conditions import Cube, disjoint, holds
from dnas.pricing.trace import TracedUnit, operator_name, own_choices, trace_network

MAX_ENTRIES = 100_000


@dataclass(frozen=True)
class PricedUnit:
    """A unit: when it runs (disjoint cubes), the choices that its price depends on, and its signatures.

    ``specs`` has a signature for every combination of options of ``variables``, by their indices.
    """

    path: str
    cubes: tuple[Cube, ...]
    variables: tuple[str, ...]
    specs: Mapping[tuple[int, ...], OperatorSpec]

    def runs(self, options: Mapping[str, int]) -> bool:
        """Whether it runs with these options."""
        return any(holds(cube, options) for cube in self.cubes)

    def spec(self, options: Mapping[str, int]) -> OperatorSpec:
        """Its signature with these options."""
        return self.specs[tuple(options[name] for name in self.variables)]


@dataclass(frozen=True)
class ChoiceInventory:
    """The units of a network; ``sizes``: the number of options of every choice; ``items``: what to measure."""

    units: tuple[PricedUnit, ...]
    sizes: Mapping[str, int]
    items: tuple[InventoryItem, ...]

    def signatures(self, options: Mapping[str, int]) -> list[OperatorSpec]:
        """The signatures of the network with these options, indices by name; missing ones are the first."""
        complete = {name: options.get(name, 0) for name in self.sizes}
        return [unit.spec(complete) for unit in self.units if unit.runs(complete)]


def inventory_of(network: ChoiceNetwork, input_size: tuple[int, int], channels: int = 3) -> ChoiceInventory:
    """The inventory of ``network`` for images (1, channels, *input_size), found by running it once.

    Raises :class:`UserError` for a network whose widths do not fit, or with too many signatures.
    """
    builder = _InventoryBuilder(network)
    trace = trace_network(network.network, torch.empty(1, channels, *input_size, device="meta"))
    units = tuple(builder.priced(unit, trace.sizes) for unit in trace.units)
    return ChoiceInventory(tuple(unit for unit in units if unit.cubes), trace.sizes, tuple(builder.items.values()))


@dataclass(frozen=True)
class UnitBuilder:
    """Builds the plain module of a unit for one combination of options: its ``forward`` takes the maps one by one."""

    unit: nn.Module
    options: Mapping[str, int]
    shapes: tuple[tuple[int, int, int], ...]
    structure: TreeSpec
    others: tuple[Any, ...]

    def __call__(self) -> nn.Module:
        """The module, with the weights of the unit."""
        maps = [torch.empty(1, *shape, device="meta") for shape in self.shapes]
        wrapped = _Rearranged(self.unit, self.structure, self.others)
        options = {
            name if choice.given_name else f"module.{name}": self.options.get(name, 0)
            for name, choice in named_choices(self.unit).items()
        }
        plain = plain_network(wrapped, options, *maps)
        simple = len(maps) == 1 and len(self.others) == 1 and self.structure.num_leaves == 1
        return plain.get_submodule("module") if simple else plain


class _Rearranged(nn.Module):
    """Calls a module with maps arranged as in the network, such as a list."""

    def __init__(self, module: nn.Module, structure: TreeSpec, others: tuple[Any, ...]) -> None:
        super().__init__()
        self.module, self._structure, self._others = module, structure, others

    def forward(self, *maps: Tensor) -> Any:
        """The module's output."""
        rest = iter(maps)
        leaves = [next(rest) if other is None else other for other in self._others]
        return self.module(*tree_unflatten(leaves, self._structure))


class _InventoryBuilder:
    """Collects the signatures of all units."""

    def __init__(self, network: ChoiceNetwork) -> None:
        self.items: dict[OperatorSpec, InventoryItem] = {}
        self._network = network.network
        self._names = {choice: name for name, choice in network.choices.items()}
        self._choices = network.choices
        self._texts: dict[str, str] = {}

    def priced(self, traced: TracedUnit, sizes: Mapping[str, int]) -> PricedUnit:
        unit = self._network.get_submodule(traced.path)
        own = {name: self._names[choice] for name, choice in own_choices(unit).items()}
        maps = (*traced.inputs, traced.output)
        reached = {name for shape in maps for name, _ in shape.channels.widths}
        variables = tuple(name for name in self._choices if name in reached or name in own.values())
        specs = {}
        for options in self._combinations(variables, sizes, traced.path):
            widths = {n: c.widths[options.get(n, 0)] for n, c in self._choices.items() if isinstance(c, WidthChoice)}
            shapes = tuple((one.channels.at(widths), one.height, one.width) for one in traced.inputs)
            builder = UnitBuilder(
                unit, {n: options[name] for n, name in own.items()}, shapes, traced.structure, traced.others
            )
            spec = self._spec(traced, builder, traced.output.channels.at(widths))
            specs[tuple(options[name] for name in variables)] = spec
            self.items.setdefault(spec, InventoryItem(spec, builder))
        return PricedUnit(traced.path, tuple(disjoint(traced.cubes, sizes)), variables, specs)

    def _combinations(
        self, variables: tuple[str, ...], sizes: Mapping[str, int], path: str
    ) -> Iterator[dict[str, int]]:
        ranges = [range(sizes[name]) for name in variables]
        count = 1
        for one in ranges:
            count *= len(one)
        if count > MAX_ENTRIES:
            raise UserError(f"{path}: {count} combinations of {', '.join(variables)} reach it, more than can be priced")
        for indices in itertools.product(*ranges):
            yield dict(zip(variables, indices, strict=True))

    def _spec(self, traced: TracedUnit, builder: UnitBuilder, out_channels: int) -> OperatorSpec:
        stride = max(1, round(traced.inputs[0].height / traced.output.height))
        unit = builder.unit
        if traced.path not in self._texts:
            self._texts[traced.path] = structure_text(unit)
        chosen = [choice.labels[builder.options[name]] for name, choice in own_choices(unit).items()]
        text = f"{self._texts[traced.path]} {chosen} {traced.structure} {traced.others}"
        extras = (("structure", zlib.crc32(text.encode()) % 1_000_000_000),)
        return OperatorSpec(operator_name(unit, traced.label), builder.shapes, out_channels, stride, extras)


def structure_text(module: nn.Module) -> str:
    """What the latency of a unit depends on besides the shapes of its maps and the options of its choices.

    Units with equal texts share the entries of a latency table.
    """
    lines = [type(module).__name__ if not isinstance(module, ChoiceLayer) else "layer"]
    lines[0] += f"({module.structure() if isinstance(module, ChoiceLayer) else module.extra_repr()})"
    if not isinstance(module, ChoiceBatchNorm2d):
        children = [(name, one) for name, one in module.named_children() if not isinstance(one, Choice)]
        lines += [f"{name}: {structure_text(one)}" for name, one in children]
    return "[" + "; ".join(lines) + "]"
