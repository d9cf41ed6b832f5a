"""From a network with choices to the plain network of one option each, without a trace of the choices."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
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

    A network on the meta device in evaluation mode runs itself, any other is copied first. Raises :class:`UserError` if
    a layer meets maps of different widths in one run.
    """
    shadow = network if _is_shadow(network) else meta_copy(network).eval().float()
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


def plain_network(
    network: nn.Module, options: Mapping[str, int], *inputs: Any, seen: HardRun | None = None
) -> nn.Module:
    """The network in which every choice is its option: a copy of ``network`` with the weights that the options use.

    ``options``: indices by the choices' names; missing ones are the first. ``inputs``: what the network takes, of which
    only the shapes are used. ``seen``: the :func:`hard_run` of the same options, if it is known. Layers that do not run
    are left out.
    """
    seen = hard_run(network, options, *inputs) if seen is None else seen
    choices = named_choices(network)
    indices = {choice: options.get(name, 0) for name, choice in choices.items()}
    names = {module: name for name, module in network.named_modules()}
    # What no choice takes is not copied, which would take most of the time.
    copies: dict[int, Any] = {
        id(module): nn.Identity() for module in _not_taken(indices) if names[module] not in seen.called
    }
    result = copy.deepcopy(network, copies)
    index_of = {copies[id(choice)]: index for choice, index in indices.items() if id(choice) in copies}
    replacements: dict[nn.Module, nn.Module] = {}
    for module, name in names.items():
        copied = copies.get(id(module))
        if isinstance(copied, ChoiceLayer) and name in seen.in_channels:
            replacements[copied] = copied.plain_layer(seen.in_channels[name], index_of)
        elif copied is not None and name and name not in seen.called and _holds_weights(copied):
            replacements[copied] = nn.Identity()
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


def _not_taken(indices: Mapping[Choice, int]) -> Iterator[nn.Module]:
    """The modules that the options leave out: other operators, and blocks behind the last one that runs."""
    for choice, index in indices.items():
        if isinstance(choice, OperatorChoice):
            yield from (module for label, module in choice.options.items() if label != choice.labels[index])
        elif isinstance(choice, RepeatChoice):
            yield from list(choice.blocks)[choice.minimum + index :]


def _is_shadow(network: nn.Module) -> bool:
    tensors = [*network.parameters(), *network.buffers()]
    return not network.training and all(one.is_meta and one.dtype in (torch.float32, torch.int64) for one in tensors)


def _holds_weights(module: nn.Module) -> bool:
    if isinstance(module, Choice):
        return False
    return isinstance(module, ChoiceLayer) or any(True for _ in module.parameters(recurse=False))


def _to_meta(value: Any) -> Any:
    return torch.empty(value.shape, device="meta") if isinstance(value, Tensor) else value
