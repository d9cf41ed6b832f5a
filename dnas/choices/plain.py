"""From a network with choices to the plain network of one option each, without a trace of the choices."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dnas.choices.choice import (
    Choice,
    InputChoice,
    OperatorChoice,
    RateChoice,
    RepeatChoice,
    WidthChoice,
    named_choices,
)
from dnas.choices.layers import ChoiceConvNorm, ChoiceGroupConvNorm, ChoiceLayer
from dnas.choices.running import Fixed, Lazy, running
from dnas.errors import UserError
from dnas.profile import meta_copy


class Picked(nn.Module):
    """What is left of an :class:`InputChoice`: the map at a fixed position of a list."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, maps: Sequence[Tensor | Lazy]) -> Tensor:
        """The map that was chosen."""
        one = maps[self.index]
        return one.value() if isinstance(one, Lazy) else one

    def extra_repr(self) -> str:
        """The position."""
        return str(self.index)


@dataclass(frozen=True)
class HardRun:
    """What one run with fixed options shows: channels of the maps that enter layers, modules called, choices used.

    Layers and modules are named by their path, choices by their name.
    """

    in_channels: Mapping[str, int]
    called: frozenset[str]
    used: frozenset[str]


def hard_run(network: nn.Module, options: Mapping[str, int], *inputs: Any) -> HardRun:
    """Run the ``options`` (indices by name) on inputs of the given shapes; nothing is computed.

    Raises :class:`UserError` if a layer meets maps of different widths in one run.
    """
    shadow = meta_copy(network).eval().float()
    indices = {choice: options.get(name, 0) for name, choice in named_choices(shadow).items()}
    run = Fixed(indices)
    channels: dict[str, int] = {}
    called: set[str] = set()
    names = dict(shadow.named_modules(remove_duplicate=False))
    first_name: dict[nn.Module, str] = {}
    for name, module in names.items():
        first_name.setdefault(module, name)

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        name = first_name[module]
        called.add(name)
        layer = isinstance(module, ChoiceLayer)
        if layer and channels.setdefault(name, args[0].shape[1]) != args[0].shape[1]:
            raise UserError(f"layer {name}: is used for maps of {channels[name]} and of {args[0].shape[1]} channels")

    with ExitStack() as hooks, running(run), torch.no_grad():
        for module in first_name:
            hooks.callback(module.register_forward_pre_hook(record).remove)
        shadow(*tree_map(_to_meta, inputs))
    used = frozenset(name for name, choice in named_choices(shadow).items() if choice in run.used)
    return HardRun(channels, frozenset(called), used)


def plain_network(network: nn.Module, options: Mapping[str, int], *inputs: Any) -> nn.Module:
    """The network in which every choice is its option: a copy of ``network`` with the weights that the options use.

    ``options``: indices by the choices' names; missing ones are the first. ``inputs``: what the network takes, of which
    only the shapes are used. Layers that do not run are left out.
    """
    seen = hard_run(network, options, *inputs)
    result = copy.deepcopy(network)
    choices = named_choices(result)
    index_of = {choice: options.get(name, 0) for name, choice in choices.items()}
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in result.named_modules():
        if isinstance(module, ChoiceLayer) and name in seen.in_channels:
            replacements[module] = module.plain_layer(seen.in_channels[name], index_of)
        elif name and name not in seen.called and _holds_weights(module):
            replacements[module] = nn.Identity()
    result = _chosen(result, index_of, replacements)
    _replace(result, index_of, replacements)
    return result


def _chosen(
    module: nn.Module, index_of: Mapping[Choice, int], replacements: Mapping[nn.Module, nn.Module]
) -> nn.Module:
    """What replaces ``module``, which may be a choice within a choice."""
    while isinstance(module, OperatorChoice):
        module = module.options[module.labels[index_of[module]]]
    if isinstance(module, RepeatChoice):
        count = module.minimum + index_of[module]
        blocks = [_chosen(block, index_of, replacements) for block in list(module.blocks)[:count]]
        return nn.Identity() if not blocks else nn.Sequential(*blocks)
    if isinstance(module, InputChoice):
        return Picked(index_of[module])
    if isinstance(module, (WidthChoice, RateChoice)):
        return nn.Identity()
    if isinstance(module, (ChoiceConvNorm, ChoiceGroupConvNorm)):
        return nn.Sequential(*module)
    return replacements.get(module, module)


def _replace(module: nn.Module, index_of: Mapping[Choice, int], replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replace choices and layers in all descendants, in place."""
    done: dict[nn.Module, nn.Module] = {}

    def visit(parent: nn.Module) -> None:
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            if child not in done:
                done[child] = _chosen(child, index_of, replacements)
                done.setdefault(done[child], done[child])
                visit(done[child])
            parent._modules[name] = done[child]

    visit(module)


def _holds_weights(module: nn.Module) -> bool:
    if isinstance(module, Choice):
        return False
    return isinstance(module, ChoiceLayer) or any(True for _ in module.parameters(recurse=False))


def _to_meta(value: Any) -> Any:
    return torch.empty(value.shape, device="meta") if isinstance(value, Tensor) else value
