"""What a network with choices consists of: found by running it once, with all options, on the meta device.

The run follows the channels of every map as sums over width choices, and the conditions on choices under which every
part runs. The parts that are priced are *units*: modules without a choice of what runs inside, and with at most one
choice of a width or rate of their own. What a module's ``forward`` does outside of units (adding, concatenating) has no
price.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from dnas.choices import (
    Choice,
    ChoiceBatchNorm2d,
    ChoiceLayer,
    InputChoice,
    Lazy,
    OperatorChoice,
    RateChoice,
    RepeatChoice,
    WidthChoice,
    named_choices,
    widest,
)
from dnas.choices.running import Option, Running, running
from dnas.errors import UserError
from dnas.pricing.channels import Channels
from dnas.pricing.conditions import ALWAYS, Cube, both, cube_of, disjoint
from dnas.profile import meta_copy

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, nn.Identity, nn.Dropout, Choice)
_PADDING_OPERATIONS = ("constant_pad_nd",)


@dataclass(frozen=True)
class MapShape:
    """Shape of a map: channels, height and width."""

    channels: Channels
    height: int
    width: int


@dataclass(frozen=True)
class TracedUnit:
    """One unit as it runs: path of its module, option that it is (if it is one), condition, maps in and out.

    ``structure`` and ``others``: how the maps are arranged in its arguments, and the arguments that are no maps.
    """

    path: str
    label: str | None
    cubes: tuple[Cube, ...]
    inputs: tuple[MapShape, ...]
    output: MapShape
    structure: TreeSpec
    others: tuple[Any, ...]


@dataclass(frozen=True)
class Trace:
    """The units of a network, and its choices by name with the number of options."""

    units: tuple[TracedUnit, ...]
    sizes: Mapping[str, int]


def trace_network(network: nn.Module, *inputs: Any) -> Trace:
    """Run ``network`` once, with all options, on inputs of the given shapes.

    Raises :class:`UserError` if the widths of two maps that meet need not be equal, naming the layers that make them.
    """
    shadow = meta_copy(network).eval()
    tracer = _Tracer(shadow)
    maps = [one.to("meta") if isinstance(one, Tensor) else one for one in inputs]
    with ExitStack() as hooks, torch.no_grad(), running(tracer), tracer.channels:
        for path, module in shadow.named_modules():
            hooks.callback(module.register_forward_pre_hook(partial(tracer.enter, path), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(partial(tracer.leave, path)).remove)
        shadow(*maps)
    units = tuple(unit for found in tracer.found if (unit := found.traced(tracer)) is not None)
    return Trace(units, {name: len(choice.labels) for name, choice in tracer.choices.items()})


@dataclass
class _Node:
    """A lazy map or the whole network: the cases in which it is read, each a node and what it adds."""

    sizes: Mapping[str, int]
    reads: list[tuple[_Node, Cube]] = field(default_factory=list)
    known: tuple[Cube, ...] | None = None

    def cubes(self) -> tuple[Cube, ...]:
        """The condition of the node, in disjoint cubes, so that it stays short along a chain of nodes."""
        if self.known is None:
            joined = (both(outer, inner) for node, inner in self.reads for outer in node.cubes())
            self.known = tuple(disjoint((cube for cube in joined if cube is not None), self.sizes))
        return self.known


@dataclass
class _Found:
    """A unit while the network runs."""

    path: str
    label: str | None
    node: _Node
    cube: Cube
    inputs: tuple[MapShape, ...]
    structure: TreeSpec
    others: tuple[Any, ...]
    output: MapShape | None = None

    def traced(self, tracer: _Tracer) -> TracedUnit | None:
        if self.output is None:
            return None
        cubes = tuple(cube for outer in self.node.cubes() if (cube := both(outer, self.cube)) is not None)
        return TracedUnit(self.path, self.label, cubes, self.inputs, self.output, self.structure, self.others)


class _Tracer(Running):
    """Runs all options and records what runs when."""

    def __init__(self, network: nn.Module) -> None:
        self.choices = named_choices(network)
        self.names = {choice: name for name, choice in self.choices.items()}
        self.found: list[_Found] = []
        self.channels = _ChannelTracker()
        self._units = {module: _is_unit(module) for module in network.modules()}
        self._labels = {
            option: label
            for choice in self.choices.values()
            if isinstance(choice, OperatorChoice)
            for label, option in choice.options.items()
        }
        switchable = (module for module in network.modules() if isinstance(module, ChoiceBatchNorm2d))
        self._switched = {norm for module in switchable for norm in module.norms.values()}
        self._sizes = {name: len(choice.labels) for name, choice in self.choices.items()}
        self._node, self._cube = _Node(self._sizes, known=(ALWAYS,)), ALWAYS
        self._lazy: dict[Lazy, tuple[_Node, Tensor]] = {}
        self._active: _Found | None = None
        self._active_module: nn.Module | None = None

    def select(self, choice: Choice, options: Sequence[Option]) -> Tensor:
        """All options, each under its condition; their outputs must have the same shape."""
        name, before = self.names[choice], self._cube
        results = []
        for index, option in enumerate(options):
            cube = both(before, cube_of({name: {index}}))
            if cube is not None:
                self._cube = cube
                results.append((index, option()))
                self._cube = before
        first, result = results[0]
        for index, other in results[1:]:
            self._require_same(choice, (first, result), (index, other))
        return result

    def width(self, choice: WidthChoice) -> int:
        """The largest."""
        return choice.widest

    def gate(self, choice: Choice) -> Tensor | None:
        """None: there are no gradients."""
        return None

    def rate(self, choice: RateChoice) -> Tensor | int:
        """1: shapes do not depend on it."""
        return 1

    def shared(self, lazy: Lazy) -> Tensor:
        """The map, computed once under the condition that anything reads it."""
        if lazy in self._lazy:
            node, value = self._lazy[lazy]
            node.reads.append((self._node, self._cube))
            return value
        outside = self._node, self._cube
        node = _Node(self._sizes, [outside])
        self._node, self._cube = node, ALWAYS
        value = lazy.computed()
        self._node, self._cube = outside
        self._lazy[lazy] = node, value
        return value

    def enter(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Begin a unit, unless within one; check what enters a layer of fixed width."""
        self.channels.path.append(path)
        if self._active is None and self._units[module]:
            leaves, structure = tree_flatten(args)
            maps = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            others = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
            shapes = tuple(self.channels.shape(one) for one in maps)
            self._active = _Found(path, self._labels.get(module), self._node, self._cube, shapes, structure, others)
            self._active_module = module
            self.found.append(self._active)
        fixed = isinstance(module, (nn.Conv2d, nn.modules.batchnorm._BatchNorm)) and module not in self._switched
        if fixed and args:
            self._require_fixed(path, module, args[0])

    def leave(self, path: str, module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        """End a unit; the channels of a layer's output. Returns the output."""
        self.channels.path.pop()
        if isinstance(module, ChoiceLayer):
            if result is args[0]:  # a skip: the input keeps its own channels
                result = result.view_as(result)
            width = module.output
            if width is None:
                channels = self.channels.of(args[0]).times(Fraction(module.multiplier))
            else:
                name = self.names[width] if isinstance(width, WidthChoice) else None
                channels = Channels.of(widest(width)) if name is None else Channels.chosen(name)
            self.channels.mark(result, channels, path)
        if self._active_module is module:
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            assert self._active is not None
            self._active.output = self.channels.shape(outputs[0])
            self._active = self._active_module = None
        return result

    def _require_same(self, choice: Choice, one: tuple[int, Tensor], other: tuple[int, Tensor]) -> None:
        (first, a), (second, b) = one, other
        labels, name = choice.labels, self.names[choice]
        if a.shape[-2:] != b.shape[-2:]:
            raise UserError(
                f"{name}: option {labels[first]} has maps of {tuple(a.shape[-2:])}, option {labels[second]} of "
                f"{tuple(b.shape[-2:])}: expected the same size"
            )
        if self.channels.of(a) != self.channels.of(b):
            raise UserError(
                f"{name}: {self.channels.made(a)} (option {labels[first]}) and {self.channels.made(b)} "
                f"(option {labels[second]}): expected the same channels; let them share one WidthChoice"
            )

    def _require_fixed(self, path: str, module: nn.Module, x: Tensor) -> None:
        channels = self.channels.of(x)
        if channels.widths:
            raise UserError(
                f"{path} ({type(module).__name__}) has a fixed width, but reads {self.channels.made(x)}: "
                "use ChoiceConv2d or ChoiceBatchNorm2d"
            )


class _ChannelTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, follows the channels of every map (N, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path: list[str] = [""]
        # By the tensor's identity; the tensors are kept, so that none is reused. They have no memory.
        self._known: dict[int, tuple[Channels, str, Tensor]] = {}

    def mark(self, x: Any, channels: Channels, path: str | None = None) -> None:
        """Set the channels of a map and the layer that made it."""
        if isinstance(x, Tensor):
            self._known[id(x)] = channels, path or self.path[-1], x

    def of(self, x: Tensor) -> Channels:
        """The channels of a map; those of an unknown one are fixed."""
        found = self._known.get(id(x))
        return Channels.of(x.shape[1]) if found is None else found[0]

    def made(self, x: Tensor) -> str:
        """The channels of a map and the layer that made it, for messages."""
        found = self._known.get(id(x))
        return f"the input ({x.shape[1]} channels)" if found is None else f"{found[1] or 'the network'} ({found[0]})"

    def shape(self, x: Tensor) -> MapShape:
        """The shape of a map."""
        if x.dim() != 4:
            raise UserError(f"{self.path[-1]}: given a tensor of {x.dim()} dimensions, expected maps (N, C, H, W)")
        return MapShape(self.of(x), x.shape[2], x.shape[3])

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        maps = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim() == 4]
        name = func.overloadpacket.__name__
        try:
            result = func(*args, **(kwargs or {}))
        except RuntimeError:
            known = [one for one in maps if id(one) in self._known]
            if len(known) > 1 and len({one.shape[1] for one in known}) > 1:
                raise self._unequal(known[0], known[1], name) from None
            raise
        for out in (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            if out.dim() == 4 and maps:
                self.mark(out, self._channels(name, args, kwargs, maps, out))
            elif name == "stack" and maps:  # (K, N, C, H, W), which is reduced to a map again
                self._require_equal(maps, name)
                self.mark(out, self.of(maps[0]))
            elif out.dim() == 4 and (stacked := [x for x in tree_leaves(args) if id(x) in self._known]):
                self.mark(out, self.of(stacked[0]))
        return result

    def _channels(self, name: str, args: Any, kwargs: Any, maps: Sequence[Tensor], out: Tensor) -> Channels:
        if name == "cat" and (args[1] if len(args) > 1 else (kwargs or {}).get("dim", 0)) in (1, -3):
            total = Channels.of(0)
            for one in maps:
                total = total.plus(self.of(one))
            return total
        equal = [one for one in maps if one.shape[1] == out.shape[1] and one.shape[1] > 1 and id(one) in self._known]
        if equal and name != "convolution":
            self._require_equal(equal, name)
            return self.of(equal[0])
        variable = [one for one in maps if self.of(one).widths]
        if not variable or name == "convolution" or name in _PADDING_OPERATIONS:
            return Channels.of(out.shape[1])
        # A share of the channels, as of chunk.
        return self.of(variable[0]).times(Fraction(out.shape[1], variable[0].shape[1]))

    def _require_equal(self, maps: Sequence[Tensor], name: str) -> None:
        for other in maps[1:]:
            if self.of(other) != self.of(maps[0]):
                raise self._unequal(maps[0], other, name)

    def _unequal(self, one: Tensor, other: Tensor, name: str) -> UserError:
        return UserError(
            f"{self.path[-1] or 'the network'} ({name.rstrip('_')}): {self.made(one)} and {self.made(other)} meet, but "
            "need not have the same channels: let them share one WidthChoice"
        )


def _is_unit(module: nn.Module) -> bool:
    """Whether a module is priced as a whole."""
    if isinstance(module, _CONTAINERS):
        return False
    inner = list(module.modules())
    if any(isinstance(one, (OperatorChoice, InputChoice, RepeatChoice)) for one in inner):
        return False
    own = {one for one in inner if isinstance(one, (WidthChoice, RateChoice)) and len(one.labels) > 1}
    return len(own) <= 1 or isinstance(module, ChoiceLayer)


def operator_name(module: nn.Module, label: str | None) -> str:
    """The name of a unit in a latency table: that of its option, else of its class, in snake case."""
    name = label or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(module).__name__.removeprefix("Choice"))
    name = re.sub(r"[^a-z0-9_]", "_", name.lower())[:64]
    return name if name[:1].isalpha() else f"option_{name}"[:64]


def own_choices(module: nn.Module) -> dict[str, Choice]:
    """The width and rate choices of a unit, by their names within it."""
    return cast("dict[str, Choice]", {n: c for n, c in named_choices(module).items() if len(c.labels) > 1})
