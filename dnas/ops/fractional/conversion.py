"""Conversion of networks: dilated convolutions to fractional ones, and back to integer dilation rates."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from dnas.errors import UserError
from dnas.ops.fractional.module import FractionalConv2d, fractional_layers
from dnas.ops.fractional.rounding import RoundingRule, nearest
from dnas.receptive_field import dilation_bounds

Pattern = str | re.Pattern[str]


def make_fractional(
    module: nn.Module,
    layers: Pattern | Iterable[Pattern] | None = None,
    *,
    upper: float | Mapping[str, float] | None = None,
    input_size: tuple[int, int] = (64, 64),
    channels: int | None = None,
) -> nn.Module:
    """A copy of ``module`` whose dilated convolutions have learnable rates; its outputs are the same as before.

    ``layers`` selects ``nn.Conv2d`` layers with an odd square kernel by name: a glob such as ``"backbone.*.conv2"``, a
    compiled regular expression (searched for in the name), or several of these; by default all layers with a dilation
    above 1. Each selected layer gets a scalar parameter named ``dilation`` with the bounds [1, upper].

    The upper bounds are k / s of the preceding layers (RegSeg v3, Eq. 3). They are found by running a copy of the
    network on a zero image (1, channels, H, W) of ``input_size``; ``channels`` defaults to the input channels of the
    first convolution. A layer whose rate exceeds this bound keeps its rate as the bound. ``upper``, one number or a
    number per layer name, overrides k / s.

    Raises :class:`UserError` when no layer is selected (the message lists the candidates), when a selected layer cannot
    be converted, when ``upper`` excludes a current rate, and when a bound is neither found nor given.
    """
    candidates = {name: part for name, part in module.named_modules() if _is_candidate(part)}
    selected = _select(candidates, layers)
    for name, conv in selected.items():
        _check_convertible(name, conv)
    bounds = _upper_bounds(module, selected, upper, input_size, channels)
    result = copy.deepcopy(module)
    copies = {name: part for name, part in result.named_modules() if name in selected}
    return _replace(
        result,
        {part: FractionalConv2d.from_conv(part, bounds[name]) for name, part in copies.items() if _is_candidate(part)},
    )


def round_dilations(module: nn.Module, rule: RoundingRule | None = None) -> nn.Module:
    """A copy of ``module`` with ``nn.Conv2d`` layers of integer rates in place of its fractional convolutions.

    ``rule`` maps the rates of all fractional layers, by name, to integers: by default :func:`nearest`;
    :func:`floor_and_ceil` for RegSeg's blocks. The default rule's rates are clamped to [1, floor(upper)]. Those of a
    given rule, which may round up a rate at its bound, are clamped to [1, ceil(upper)]. Raises :class:`UserError` when
    ``module`` has no fractional layer, and when the rule omits a layer or returns a rate that is not an integer.
    """
    fractional = fractional_layers(module)
    if not fractional:
        raise UserError("the network has no fractional convolution to round: call make_fractional first")
    rounded = dict((rule or nearest)({name: layer.rate() for name, layer in fractional.items()}))
    if missing := [name for name in fractional if name not in rounded]:
        raise UserError(f"the rounding rule returned no rate for {', '.join(missing)}: expected one for every layer")
    result = copy.deepcopy(module)
    layers = fractional_layers(result)
    round_bound = math.floor if rule is None else math.ceil
    rates = {name: _clamp_rate(name, rounded[name], layer.upper, round_bound) for name, layer in layers.items()}
    return _replace(result, {layer: layer.to_conv(rates[name]) for name, layer in layers.items()})


def _is_candidate(part: nn.Module) -> bool:
    """Whether a layer can be selected: a convolution with an odd square kernel larger than 1x1."""
    if not isinstance(part, nn.Conv2d):
        return False
    height, width = part.kernel_size
    return height == width and height % 2 == 1 and height > 1


def _select(candidates: Mapping[str, nn.Module], layers: Pattern | Iterable[Pattern] | None) -> dict[str, nn.Conv2d]:
    convs = {name: part for name, part in candidates.items() if isinstance(part, nn.Conv2d)}
    listed = ", ".join(name or "(the module itself)" for name in convs) or "none"
    if layers is None:
        selected = {name: conv for name, conv in convs.items() if max(conv.dilation) > 1}
        if not selected:
            raise UserError(
                "no convolution with a dilation above 1 and an odd square kernel: select layers by name; "
                f"candidates: {listed}"
            )
        return selected
    patterns = [layers] if isinstance(layers, (str, re.Pattern)) else list(layers)
    selected = {}
    for pattern in patterns:
        matched = {name: conv for name, conv in convs.items() if _matches(name, pattern)}
        if not matched:
            text = pattern if isinstance(pattern, str) else pattern.pattern
            raise UserError(
                f"the pattern {text!r} matches no convolution with an odd square kernel; candidates: {listed}"
            )
        selected |= matched
    return {name: conv for name, conv in convs.items() if name in selected}


def _matches(name: str, pattern: Pattern) -> bool:
    if isinstance(pattern, str):
        return fnmatchcase(name, pattern)
    return pattern.search(name) is not None


def _check_convertible(name: str, conv: nn.Conv2d) -> None:
    """Raise :class:`UserError` unless a fractional convolution can compute the same."""
    dilation, half = conv.dilation[0], conv.kernel_size[0] // 2
    if is_lazy(conv.weight):
        problem = "has no weights yet: run the network once first"
    elif type(conv).forward is not nn.Conv2d.forward or type(conv)._conv_forward is not nn.Conv2d._conv_forward:
        problem = f"is a {type(conv).__name__} with its own forward, which would be lost: expected that of nn.Conv2d"
    elif parametrize.is_parametrized(conv) or conv._forward_hooks or conv._forward_pre_hooks:
        problem = "has parametrizations or forward hooks, which would be lost: remove them first"
    elif conv.dilation[0] != conv.dilation[1] or conv.stride[0] != conv.stride[1]:
        problem = f"has dilation {conv.dilation} and stride {conv.stride}: expected the same on both axes"
    elif conv.padding_mode != "zeros":
        problem = f"has padding mode {conv.padding_mode!r}: expected 'zeros'"
    elif conv.padding != "same" and conv.padding != (dilation * half, dilation * half):
        problem = f"has padding {conv.padding}: expected dilation * (kernel // 2) = {dilation * half}"
    else:
        return
    raise UserError(f"layer {name or '(the module itself)'} cannot be made fractional: it {problem}")


def _upper_bounds(
    module: nn.Module,
    selected: Mapping[str, nn.Conv2d],
    upper: float | Mapping[str, float] | None,
    input_size: tuple[int, int],
    channels: int | None,
) -> dict[str, float]:
    """The upper bound of each selected layer's rate."""
    given = dict.fromkeys(selected, upper) if isinstance(upper, (int, float)) else dict(upper or {})
    if unknown := [name for name in given if name not in selected]:
        raise UserError(f"an upper bound for {', '.join(unknown)}: expected names of {', '.join(selected)}")
    for name, bound in given.items():
        if not selected[name].dilation[0] <= bound:
            raise UserError(
                f"layer {name}: the upper bound {bound:g} excludes its dilation rate {selected[name].dilation[0]}"
            )
    if len(given) == len(selected):
        return {name: float(given[name]) for name in selected}
    computed = _computed_bounds(module, input_size, channels)
    if missing := [name for name in selected if name not in given and name not in computed]:
        raise UserError(
            f"no upper bound found for {', '.join(missing)}: the network's forward pass does not use it; pass upper"
        )
    widened = {
        name: max(computed[name], float(conv.dilation[0])) for name, conv in selected.items() if name in computed
    }
    return {**widened, **given}


def _computed_bounds(module: nn.Module, input_size: tuple[int, int], channels: int | None) -> dict[str, float]:
    if channels is None:
        channels = next(part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d))
    try:
        return dilation_bounds(module, input_size=input_size, channels=channels)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"cannot compute the upper bounds of the rates: the network fails on an image of {channels} channels and "
            f"{input_size[0]}x{input_size[1]} pixels ({type(error).__name__}: {error}); "
            "pass input_size, channels or upper"
        ) from error


def _clamp_rate(name: str, rate: float, upper: float, round_bound: Callable[[float], int]) -> int:
    if rate != int(rate):
        raise UserError(f"the rounding rule returned {rate} for {name}: expected an integer")
    return int(max(1, min(rate, upper if math.isinf(upper) else round_bound(upper))))


def _replace(module: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace submodules wherever they are used, in place; returns ``module`` or, if it has one, its replacement."""
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(module, module)
