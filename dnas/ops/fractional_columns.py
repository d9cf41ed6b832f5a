"""The fractional-dilation convolution as interpolation and matrix products, for any device that PyTorch runs on.

For a part of the channels at a time, every tap of the kernel gets its own map, interpolated along rows and then along
columns, and one matrix product per group contracts the maps with the weights: as many multiply-adds as an integer
convolution, where the sum of four convolutions takes four times as many. The maps of a part are small enough to stay in
the cache, are never kept for the backward pass and bound the memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dnas.ops.fractional_taps import Reach, along, reach_of, taps_of

#: The taps' maps of one part hold at most this many values by default, or as many as the input if that is more.
_SMALLEST_BUDGET = 1 << 20


class Problem(NamedTuple):
    """The sizes of one convolution; the papers' symbol of ``rate`` is r."""

    rate: float
    kernel: int
    stride: int
    groups: int
    batch: int
    in_width: int
    out_width: int
    size: tuple[int, int]
    out_size: tuple[int, int]

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, rate: float, stride: int, groups: int) -> Problem:
        """``in_width`` and ``out_width`` are channels a group."""
        height, width = x.shape[-2:]
        out_size = (-(-height // stride), -(-width // stride))
        widths = (x.shape[1] // groups, weight.shape[0] // groups)
        return cls(rate, weight.shape[-1], stride, groups, x.shape[0], *widths, (height, width), out_size)

    @property
    def positions(self) -> int:
        """Output positions of one image."""
        return self.out_size[0] * self.out_size[1]

    def reaches(self, axis: int) -> list[Reach]:
        """The taps on the vertical (-2) or horizontal (-1) axis."""
        taps = taps_of(self.rate, self.kernel)
        return [reach_of(tap, self.size[axis], self.out_size[axis], self.stride) for tap in taps]


class Workspace:
    """Memory by name that the parts of one call share: fresh pages for each part would cost as much as filling them."""

    def __init__(self, kind: torch.dtype, device: torch.device) -> None:
        self.kind, self.device = kind, device
        self._buffers: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor with whatever the last part left in it."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size, dtype=self.kind, device=self.device)
        return self._buffers[name][:size].view(shape)

    def take_zeros(self, name: str, *shape: int) -> Tensor:
        """As :meth:`take`, but zero in the places that no part has written, if all parts write the same places."""
        if self._shapes.get(name) == shape:
            return self.take(name, *shape)
        self._shapes[name] = shape
        return self.take(name, *shape).zero_()


class Part(NamedTuple):
    """Images, groups and input channels of each group that are worked on together."""

    images: slice
    groups: slice
    channels: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many groups, channels a group and images."""
        return (_length(self.groups), _length(self.channels), _length(self.images))


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rate: float,
    stride: int,
    groups: int,
    *,
    budget: int | None = None,
) -> Tensor:
    """(N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride)), contiguous, in the type of ``x``.

    ``budget`` is how many values the taps' maps may hold at a time (one channel's are the least); by default about as
    many as the input.
    """
    problem = Problem.of(x, weight, rate, stride, groups)
    kind = _compute_type(x)
    weights = weight.to(kind).reshape(groups, problem.out_width, problem.in_width, -1)
    out = x.new_empty((problem.batch, weight.shape[0], *problem.out_size), dtype=kind)
    space = Workspace(kind, x.device)
    for part in _parts(problem, budget or max(x.numel(), _SMALLEST_BUDGET)):
        maps = _interpolated_rows(_framed(x, problem, part, space), problem, space)
        columns = _columns(maps, problem, space)
        _add_product(out, weights[part.groups, :, part.channels].flatten(2), columns.flatten(3).flatten(1, 2), part)
    if bias is not None:
        out += bias.to(kind)[:, None, None]
    return out.to(x.dtype)


class Gradients(NamedTuple):
    """Of the input (None unless asked for), the weight and the rate (a scalar; None unless asked for)."""

    x: Tensor | None
    weight: Tensor
    rate: Tensor | None


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    rate: float,
    stride: int,
    groups: int,
    *,
    of_input: bool = True,
    of_rate: bool = True,
    budget: int | None = None,
) -> Gradients:
    """The gradients for the output's gradient ``grad``; all taps' maps are computed again, part by part.

    ``budget`` as in :func:`convolve`.
    """
    problem = Problem.of(x, weight, rate, stride, groups)
    kind = _compute_type(x)
    weights = weight.to(kind).reshape(groups, problem.out_width, problem.in_width, -1)
    grad_weights = torch.zeros_like(weights)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if of_input else None
    grad_rate = torch.zeros((), dtype=kind, device=x.device) if of_rate else None
    space = Workspace(kind, x.device)
    for part in _parts(problem, budget or max(x.numel(), _SMALLEST_BUDGET)):
        framed = _framed(x, problem, part, space)
        maps = _interpolated_rows(framed, problem, space)
        columns = _columns(maps, problem, space)
        grad_out = _grouped(grad, problem, part, kind)
        flat = columns.flatten(3).flatten(1, 2)
        own_weights = weights[part.groups, :, part.channels]
        own_gradient = torch.bmm(grad_out, flat.transpose(1, 2)).view(own_weights.shape)
        grad_weights[part.groups, :, part.channels] += own_gradient
        if grad_x is None and grad_rate is None:
            continue
        grad_columns = space.take("gradient of columns", *columns.shape)
        own_weights_flat = own_weights.flatten(2).transpose(1, 2)
        torch.bmm(own_weights_flat, grad_out, out=grad_columns.view(flat.shape))
        shares = (own_weights * own_gradient).sum((0, 1, 2)).view(problem.kernel, problem.kernel)
        if grad_rate is not None:
            grad_rate += _rate_along_columns(grad_columns, maps, shares, problem, space)
        grad_maps = _adjoint_columns(grad_columns, problem, space)
        if grad_rate is not None:
            grad_rate += _rate_along_rows(grad_maps, framed, shares, problem, space)
        if grad_x is not None:
            _store(grad_x, _adjoint_rows(grad_maps, problem, space), problem, part)
    return Gradients(grad_x, grad_weights.view(weight.shape).to(weight.dtype), grad_rate)


def _compute_type(x: Tensor) -> torch.dtype:
    """Half precision is computed in float32: the interpolation would lose most of its digits."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _parts(problem: Problem, budget: int) -> Iterator[Part]:
    """Cut the work so that the taps' maps of one part keep to the budget: images first, then groups, then channels."""
    channel = problem.kernel**2 * problem.positions
    group = channel * problem.in_width
    images = max(1, min(problem.batch, budget // max(1, group * problem.groups)))
    groups = max(1, min(problem.groups, budget // max(1, group)))
    channels = max(1, min(problem.in_width, budget // max(1, channel)))
    for image in _cuts(problem.batch, images):
        for own_groups in _cuts(problem.groups, groups):
            for own_channels in _cuts(problem.in_width, channels):
                yield Part(image, own_groups, own_channels)


def _cuts(total: int, largest: int) -> list[slice]:
    """Consecutive slices of nearly equal length, none longer than ``largest``."""
    count = math.ceil(total / largest)
    edges = [total * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _split_channels(x: Tensor, problem: Problem, part: Part) -> Tensor:
    """The part of (N, C, H, W) as a view (groups, channels, images, H, W)."""
    grouped = x.unflatten(1, (problem.groups, -1))  # type: ignore[no-untyped-call]
    own: Tensor = grouped[part.images, part.groups, part.channels]
    return own.permute(1, 2, 0, 3, 4)


def _framed(x: Tensor, problem: Problem, part: Part, space: Workspace) -> Tensor:
    """The part of the input as (groups, channels, images, H + 2, W + 2), with zeros around each image."""
    height, width = problem.size
    framed = space.take_zeros("framed", *part.shape, height + 2, width + 2)
    framed[..., 1:-1, 1:-1] = _split_channels(x, problem, part)
    return framed


def _interpolated_rows(framed: Tensor, problem: Problem, space: Workspace) -> list[Tensor]:
    """One map (groups, channels, images, H', W + 2) for each row of the kernel."""
    maps = []
    for reach in problem.reaches(-2):
        if reach.number == 0:
            maps.append(along(framed, -2, reach.low))
            continue
        target = space.take_zeros(f"map {reach.number}", *framed.shape[:-2], problem.out_size[0], framed.shape[-1])
        _interpolate(framed, target, reach, -2)
        maps.append(target)
    return maps


def _columns(maps: Sequence[Tensor], problem: Problem, space: Workspace) -> Tensor:
    """Every tap's map: (groups, channels, taps, images, H', W')."""
    groups, channels, images = maps[0].shape[:3]
    columns = space.take_zeros("columns", groups, channels, problem.kernel**2, images, *problem.out_size)
    reaches = problem.reaches(-1)
    for row, source in enumerate(maps):
        for column, reach in enumerate(reaches):
            _interpolate(source, columns[:, :, row * problem.kernel + column], reach, -1)
    return columns


def _interpolate(source: Tensor, target: Tensor, reach: Reach, axis: int) -> None:
    """Write what the tap reads in ``source`` to ``target``, which is left zero where it reads beside the image."""
    if reach.is_empty:
        return
    low, written = along(source, axis, reach.low), along(target, axis, reach.outputs)
    if reach.fraction == 0:
        written.copy_(low)
    else:
        torch.lerp(low, along(source, axis, reach.high), reach.fraction, out=written)


def _add_adjoint(grad_target: Tensor, grad_source: Tensor, reach: Reach, axis: int) -> None:
    """Add to ``grad_source`` what the interpolation of ``reach`` passes back."""
    passed = along(grad_target, axis, reach.outputs)
    along(grad_source, axis, reach.low).add_(passed, alpha=1 - reach.fraction)
    if reach.fraction:
        along(grad_source, axis, reach.high).add_(passed, alpha=reach.fraction)


def _adjoint_columns(grad_columns: Tensor, problem: Problem, space: Workspace) -> list[Tensor]:
    """The gradients of the maps of :func:`_interpolated_rows`."""
    groups, channels, _, images = grad_columns.shape[:4]
    grad_maps = []
    for row in range(problem.kernel):
        shape = (groups, channels, images, problem.out_size[0], problem.size[1] + 2)
        grad_map = space.take(f"gradient of map {row}", *shape).zero_()
        for column, reach in enumerate(problem.reaches(-1)):
            _add_adjoint(grad_columns[:, :, row * problem.kernel + column], grad_map, reach, -1)
        grad_maps.append(grad_map)
    return grad_maps


def _adjoint_rows(grad_maps: Sequence[Tensor], problem: Problem, space: Workspace) -> Tensor:
    """The gradient of the framed input."""
    height, width = problem.size
    grad = space.take("gradient of framed", *grad_maps[0].shape[:-2], height + 2, width + 2).zero_()
    for grad_map, reach in zip(grad_maps, problem.reaches(-2), strict=True):
        _add_adjoint(grad_map, grad, reach, -2)
    return grad


def _slope(gradient: Tensor, source: Tensor, reach: Reach, axis: int, share: Tensor, space: Workspace) -> Tensor:
    """The rate's gradient through one interpolation, d (1 - f) a + f b = (b - a) number, from one product.

    ``share`` is the product of ``gradient`` with the interpolated values, (1 - f) A + f B, and is known. So A or B
    alone, whichever weighs less, gives their difference: B - A = (B - share) / (1 - f) = (share - A) / f.
    """
    if reach.is_empty or reach.number == 0:
        return torch.zeros_like(share)
    passed = along(gradient, axis, reach.outputs)
    if reach.fraction < 0.5:
        product = _inner(passed, along(source, axis, reach.high), space)
        return (product - share) * (reach.number / (1 - reach.fraction))
    product = _inner(passed, along(source, axis, reach.low), space)
    return (share - product) * (reach.number / reach.fraction)


def _inner(a: Tensor, b: Tensor, space: Workspace) -> Tensor:
    return torch.mul(a, b, out=space.take("product", *a.shape)).sum()


def _rate_along_columns(
    grad_columns: Tensor, maps: Sequence[Tensor], shares: Tensor, problem: Problem, space: Workspace
) -> Tensor:
    """The rate's gradient through the interpolation along columns; ``shares`` are the taps' parts of <grad, out>."""
    total = torch.zeros_like(shares[0, 0])
    for row, source in enumerate(maps):
        for column, reach in enumerate(problem.reaches(-1)):
            gradient = grad_columns[:, :, row * problem.kernel + column]
            total += _slope(gradient, source, reach, -1, shares[row, column], space)
    return total


def _rate_along_rows(
    grad_maps: Sequence[Tensor], framed: Tensor, shares: Tensor, problem: Problem, space: Workspace
) -> Tensor:
    """The rate's gradient through the interpolation along rows."""
    total = torch.zeros_like(shares[0, 0])
    for row, reach in enumerate(problem.reaches(-2)):
        total += _slope(grad_maps[row], framed, reach, -2, shares[row].sum(), space)
    return total


def _add_product(out: Tensor, weights: Tensor, columns: Tensor, part: Part) -> None:
    """Write, or add for all but a group's first channels, ``weights @ columns`` into the part of ``out``."""
    groups, out_width = weights.shape[:2]
    images = _length(part.images)
    grouped = out.view(out.shape[0], -1, out_width, math.prod(out.shape[-2:]))[part.images, part.groups]
    first = part.channels.start == 0
    if images == 1:
        grouped[0].baddbmm_(weights, columns, beta=0 if first else 1)
        return
    product = torch.bmm(weights, columns).view(groups, out_width, images, -1).permute(2, 0, 1, 3)
    if first:
        grouped.copy_(product)
    else:
        grouped.add_(product)


def _grouped(grad: Tensor, problem: Problem, part: Part, kind: torch.dtype) -> Tensor:
    """The part of the output's gradient as (groups, channels, images x positions)."""
    whole = Part(part.images, part.groups, slice(0, problem.out_width))
    return _split_channels(grad, problem, whole).to(kind).reshape(_length(part.groups), problem.out_width, -1)


def _store(grad_x: Tensor, framed: Tensor, problem: Problem, part: Part) -> None:
    _split_channels(grad_x, problem, part).copy_(framed[..., 1:-1, 1:-1])
