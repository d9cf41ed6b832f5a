"""How the work of a fractional-dilation convolution is cut into parts that stay in the cache, and their memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dnas.ops.fractional_taps import Tap, reach_of, taps_of

#: The maps of one part hold twice the values of the input, but at least and at most so many (4 and 8 MB of float32).
_FEWEST_VALUES, _MOST_VALUES = 1 << 20, 1 << 21


class Problem(NamedTuple):
    """The sizes of one convolution and the taps that read inside the image, on the two axes.

    ``in_width`` and ``out_width`` are channels a group.
    """

    rows: tuple[Tap, ...]
    columns: tuple[Tap, ...]
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
        """The problem of (N, C, H, W) and (O, C / groups, k, k); the papers' symbol of ``rate`` is r."""
        height, width = x.shape[-2:]
        kernel = weight.shape[-1]
        out_size = (-(-height // stride), -(-width // stride))
        widths = (x.shape[1] // groups, weight.shape[0] // groups)
        taps = taps_of(rate, kernel)
        rows = tuple(tap for tap in taps if not reach_of(tap, height, out_size[0], stride).is_empty)
        columns = tuple(tap for tap in taps if not reach_of(tap, width, width, 1).is_empty)
        return cls(rows, columns, kernel, stride, groups, x.shape[0], *widths, (height, width), out_size)

    @property
    def line(self) -> int:
        """Values of one line of a map: the columns of the input and one zero."""
        return self.size[1] + 1

    @property
    def values_of_a_row(self) -> int:
        """Values of all maps that one row of the output of one image and group needs."""
        maps = len(self.rows) * self.in_width + (2 * len(self.columns) - 1) * self.out_width
        return maps * self.line

    def matrix(self, weight: Tensor) -> Tensor:
        """The weights as (groups, columns x out_width, rows x in_width), for the taps that read inside the image."""
        taps = self._own_taps(weight.view(self.groups, self.out_width, self.in_width, self.kernel, self.kernel))
        return taps.permute(0, 4, 1, 3, 2).flatten(1, 2).flatten(2)

    def weight(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`matrix`, zero for the other taps."""
        shape = (self.groups, self.out_width, self.in_width, self.kernel, self.kernel)
        weight = matrix.new_zeros(shape)
        tapped = matrix.view(self.groups, len(self.columns), self.out_width, len(self.rows), self.in_width)
        self._own_taps(weight).copy_(tapped.permute(0, 2, 4, 3, 1))
        return weight.view(-1, self.in_width, self.kernel, self.kernel)

    def _own_taps(self, weight: Tensor) -> Tensor:
        """The taps that read inside the image, which are neighbours, as a view (..., rows, columns)."""
        half = self.kernel // 2
        rows, columns = (slice(taps[0].number + half, taps[-1].number + half + 1) for taps in (self.rows, self.columns))
        return weight[..., rows, columns]


class Block(NamedTuple):
    """Images and groups that are worked on together."""

    images: slice
    groups: slice

    @property
    def shape(self) -> tuple[int, int]:
        """How many groups and images."""
        return (length(self.groups), length(self.images))

    def of(self, x: Tensor, groups: int) -> Tensor:
        """The block of (N, C, H, W) as a view (groups, channels, images, H, W)."""
        grouped = x.unflatten(1, (groups, -1))  # type: ignore[no-untyped-call]
        own: Tensor = grouped[self.images, self.groups]
        return own.permute(1, 2, 0, 3, 4)


def length(part: slice) -> int:
    """How many indices a slice with two ends has."""
    return int(part.stop - part.start)


def blocks(problem: Problem, budget: int | None) -> Iterator[Block]:
    """Cut the work so that the maps of one block hold ``budget`` values, if those of one image and group do."""
    budget = budget or _default_budget(problem)
    group = problem.values_of_a_row * problem.out_size[0]
    images = _at_most(budget // (group * problem.groups), problem.batch)
    groups = _at_most(budget // group, problem.groups)
    for image in _cuts(problem.batch, images):
        for own_groups in _cuts(problem.groups, groups):
            yield Block(image, own_groups)


def strips(problem: Problem, block: Block, budget: int | None) -> list[slice]:
    """Cut a block's rows of the output so that the maps of one strip hold ``budget`` values, if those of one row do."""
    row = problem.values_of_a_row * math.prod(block.shape)
    return _cuts(problem.out_size[0], _at_most((budget or _default_budget(problem)) // row, problem.out_size[0]))


def _default_budget(problem: Problem) -> int:
    values = problem.batch * problem.groups * problem.in_width * problem.size[0] * problem.size[1]
    return min(max(2 * values, _FEWEST_VALUES), _MOST_VALUES)


def _at_most(wanted: int, available: int) -> int:
    return max(1, min(wanted, available))


def _cuts(total: int, largest: int) -> list[slice]:
    """Consecutive slices of nearly equal length, none longer than ``largest``; none at all of nothing."""
    count = math.ceil(total / largest)
    edges = [total * index // max(count, 1) for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


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


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last for a tensor that is laid out so and not also contiguous, else contiguous."""
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format
