"""Make the dilation rates of any network searchable, and whole again."""

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
from dnas.ops.fractional_blocks import layers_by_block
from dnas.ops.fractional_module import FractionalConv2d, fractional_layers
from dnas.receptive_field import dilation_bounds

Pattern = str | re.Pattern[str]
#: From the rates of all fractional layers, by name, to whole rates; see :func:`round_dilations`.
RoundingRule = Callable[[Mapping[str, float]], Mapping[str, int]]

_BRANCHES = (2, 4)
"""Numbers of dilated branches that RegSeg's blocks have."""


def make_fractional(
    module: nn.Module,
    layers: Pattern | Iterable[Pattern] | None = None,
    *,
    upper: float | Mapping[str, float] | None = None,
    input_size: tuple[int, int] = (64, 64),
    channels: int | None = None,
) -> nn.Module:
    """A copy of ``module`` whose dilated convolutions have learnable rates; it computes the same until they change.

    ``layers`` chooses ``nn.Conv2d`` layers with an odd square kernel by name: a glob such as ``"backbone.*.conv2"``, a
    compiled regular expression (searched for in the name), or several; by default all with a dilation above 1. Each
    gets a scalar parameter named ``...dilation``, kept in [1, bound]. The bounds are k / s of the layers before (RegSeg
    v3, Eq. 3), found by running a copy on an image of zeros (1, channels, H, W) of ``input_size``, where ``channels``
    are by default those that the first convolution takes; a layer that is dilated beyond its bound keeps its present
    rate as the bound. ``upper``, a number or a number for each layer name, is used instead of k / s where it is given.

    Raises :class:`UserError` when no layer is chosen (the candidates are listed), when a chosen layer cannot be made
    fractional, when an ``upper`` excludes a present rate, and when a bound is neither found nor given.
    """
    candidates = {name: part for name, part in module.named_modules() if _is_candidate(part)}
    chosen = _choose(candidates, layers)
    for name, conv in chosen.items():
        _check_layer(name, conv)
    bounds = _bounds(module, chosen, upper, input_size, channels)
    result = copy.deepcopy(module)
    copies = {name: part for name, part in result.named_modules() if name in chosen}
    return _replaced(
        result,
        {part: FractionalConv2d.from_conv(part, bounds[name]) for name, part in copies.items() if _is_candidate(part)},
    )


def round_dilations(module: nn.Module, rule: RoundingRule | None = None) -> nn.Module:
    """A copy of ``module`` with plain ``nn.Conv2d`` of whole rates in place of its fractional convolutions.

    ``rule`` gets the rates of all fractional layers by name and returns whole ones; :func:`nearest` by default,
    :func:`floor_and_ceil` for RegSeg's blocks. The nearest are put within [1, floor(bound)], those of a rule, which may
    round a rate at its bound upwards, within [1, ceil(bound)]. Raises :class:`UserError` when ``module`` has no
    fractional layer, or the rule leaves one out or returns no whole rate.
    """
    found = fractional_layers(module)
    if not found:
        raise UserError("the network has no fractional convolution to round: call make_fractional first")
    rates = dict((rule or nearest)({name: layer.rate() for name, layer in found.items()}))
    if missing := [name for name in found if name not in rates]:
        raise UserError(f"the rounding rule returned no rate for {', '.join(missing)}: expected one for every layer")
    result = copy.deepcopy(module)
    layers = fractional_layers(result)
    limit = math.floor if rule is None else math.ceil
    whole = {name: _whole(name, rates[name], layer.upper, limit) for name, layer in layers.items()}
    return _replaced(result, {layer: layer.to_conv(whole[name]) for name, layer in layers.items()})


def nearest(rates: Mapping[str, float]) -> dict[str, int]:
    """Each rate rounded to the nearest whole one, halves up."""
    return {name: math.floor(rate + 0.5) for name, rate in rates.items()}


def floor_and_ceil(rates: Mapping[str, float]) -> dict[str, int]:
    """RegSeg's rule: of a block's rates the smaller half is rounded down and the larger half up.

    For two branches that is the paper's floor(min(r1, r2)), ceil(max(r1, r2)) (v3, section 3.4). For its blocks of four
    the paper states no rule; this one serves the same two ends, as the largest rate, which alone counts for the field
    of view, is never made smaller, and the smallest, which keeps the details, never larger. Equal rates are taken in
    the order of ``rates``.

    :func:`~dnas.ops.block_of` tells which layers are one block; in one of any other size, the rates are rounded to the
    nearest.
    """
    whole: dict[str, int] = {}
    for names in layers_by_block(rates).values():
        if len(names) in _BRANCHES:
            rising, half = sorted(names, key=lambda name: rates[name]), len(names) // 2
            whole |= {name: math.floor(rates[name]) for name in rising[:half]}
            whole |= {name: math.ceil(rates[name]) for name in rising[half:]}
        else:
            whole |= nearest({name: rates[name] for name in names})
    return {name: whole[name] for name in rates}


def _is_candidate(part: nn.Module) -> bool:
    """Whether a layer can be chosen: a convolution with an odd square kernel."""
    if not isinstance(part, nn.Conv2d):
        return False
    height, width = part.kernel_size
    return height == width and height % 2 == 1 and height > 1


def _choose(candidates: Mapping[str, nn.Module], layers: Pattern | Iterable[Pattern] | None) -> dict[str, nn.Conv2d]:
    convs = {name: part for name, part in candidates.items() if isinstance(part, nn.Conv2d)}
    listed = ", ".join(name or "(the module itself)" for name in convs) or "none"
    if layers is None:
        chosen = {name: conv for name, conv in convs.items() if max(conv.dilation) > 1}
        if not chosen:
            raise UserError(
                "no convolution with a dilation above 1 and an odd square kernel: choose layers by name; "
                f"candidates: {listed}"
            )
        return chosen
    patterns = [layers] if isinstance(layers, (str, re.Pattern)) else list(layers)
    chosen = {}
    for pattern in patterns:
        found = {name: conv for name, conv in convs.items() if _matches(name, pattern)}
        if not found:
            text = pattern if isinstance(pattern, str) else pattern.pattern
            raise UserError(
                f"the pattern {text!r} matches no convolution with an odd square kernel; candidates: {listed}"
            )
        chosen |= found
    return {name: conv for name, conv in convs.items() if name in chosen}


def _matches(name: str, pattern: Pattern) -> bool:
    if isinstance(pattern, str):
        return fnmatchcase(name, pattern)
    return pattern.search(name) is not None


def _check_layer(name: str, conv: nn.Conv2d) -> None:
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


def _bounds(
    module: nn.Module,
    chosen: Mapping[str, nn.Conv2d],
    upper: float | Mapping[str, float] | None,
    input_size: tuple[int, int],
    channels: int | None,
) -> dict[str, float]:
    """The upper bound of each chosen layer's rate."""
    given = dict.fromkeys(chosen, upper) if isinstance(upper, (int, float)) else dict(upper or {})
    if unknown := [name for name in given if name not in chosen]:
        raise UserError(f"an upper bound for {', '.join(unknown)}, expected names of {', '.join(chosen)}")
    for name, bound in given.items():
        if not chosen[name].dilation[0] <= bound:
            raise UserError(
                f"layer {name}: the upper bound {bound:g} excludes its present dilation rate {chosen[name].dilation[0]}"
            )
    if len(given) == len(chosen):
        return {name: float(given[name]) for name in chosen}
    found = _computed_bounds(module, input_size, channels)
    if missing := [name for name in chosen if name not in given and name not in found]:
        raise UserError(f"no bound found for {', '.join(missing)}, which does not run on an image: give upper={{...}}")
    widened = {name: max(found[name], float(conv.dilation[0])) for name, conv in chosen.items() if name in found}
    return {**widened, **given}


def _computed_bounds(module: nn.Module, input_size: tuple[int, int], channels: int | None) -> dict[str, float]:
    if channels is None:
        channels = next(part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d))
    try:
        return dilation_bounds(module, input_size=input_size, channels=channels)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"cannot find the bounds of the rates: the network does not run on an image of {channels} channels and "
            f"{input_size[0]}x{input_size[1]} pixels ({type(error).__name__}: {error}); "
            "give input_size, channels or upper"
        ) from error


def _whole(name: str, rate: float, upper: float, limit: Callable[[float], int]) -> int:
    if rate != int(rate):
        raise UserError(f"the rounding rule returned {rate} for {name}: expected a whole rate")
    return int(max(1, min(rate, upper if math.isinf(upper) else limit(upper))))


def _replaced(module: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """``module`` with its parts replaced wherever they are used; a replacement if it is to be replaced itself."""
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(module, module)
