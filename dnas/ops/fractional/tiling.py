"""Tiling of the separable form into parts whose intermediate maps fit the cache, and the buffers they reuse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dnas.ops.fractional.geometry import ConvGeometry

#: The maps of a tile hold twice as many values as the input, within these limits (4 and 8 MB in float32).
_MIN_BUDGET, _MAX_BUDGET = 1 << 20, 1 << 21


class Tile(NamedTuple):
    """A range of images and a range of groups that are processed together."""

    images: slice
    groups: slice

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of groups and images."""
        return (slice_length(self.groups), slice_length(self.images))

    def view(self, x: Tensor, groups: int) -> Tensor:
        """The tile's part of ``x`` (N, C, H, W) as a view (groups, channels, images, H, W)."""
        grouped = x.unflatten(1, (groups, -1))  # type: ignore[no-untyped-call]
        part: Tensor = grouped[self.images, self.groups]
        return part.permute(1, 2, 0, 3, 4)


def slice_length(part: slice) -> int:
    """The number of indices in a slice with both bounds and step 1."""
    return int(part.stop - part.start)


def tiles(geometry: ConvGeometry, budget: int | None) -> Iterator[Tile]:
    """Split the batch and the groups so that the maps of one tile hold at most ``budget`` values.

    A tile has at least one image and one group, even if these exceed the budget.
    """
    budget = budget or _default_budget(geometry)
    group_values = geometry.values_per_output_row * geometry.out_size[0]
    images_per_tile = _clamp(budget // (group_values * geometry.groups), geometry.batch)
    groups_per_tile = _clamp(budget // group_values, geometry.groups)
    for images in _split(geometry.batch, images_per_tile):
        for groups in _split(geometry.groups, groups_per_tile):
            yield Tile(images, groups)


def row_strips(geometry: ConvGeometry, tile: Tile, budget: int | None) -> list[slice]:
    """Split a tile's output rows so that the maps of one strip hold at most ``budget`` values, or one row."""
    row_values = geometry.values_per_output_row * math.prod(tile.shape)
    rows = (budget or _default_budget(geometry)) // row_values
    return _split(geometry.out_size[0], _clamp(rows, geometry.out_size[0]))


def _default_budget(geometry: ConvGeometry) -> int:
    values = geometry.batch * geometry.groups * geometry.in_channels * geometry.size[0] * geometry.size[1]
    return min(max(2 * values, _MIN_BUDGET), _MAX_BUDGET)


def _clamp(wanted: int, available: int) -> int:
    return max(1, min(wanted, available))


def _split(total: int, largest: int) -> list[slice]:
    """Consecutive slices of nearly equal length, none longer than ``largest``; no slice if ``total`` is 0."""
    count = math.ceil(total / largest)
    edges = [total * index // max(count, 1) for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


class Workspace:
    """Named buffers that the tiles of one call reuse: page faults of new buffers would cost as much as filling them."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._buffers: dict[str, Tensor] = {}
        self._zeroed_shapes: dict[str, tuple[int, ...]] = {}

    def empty(self, name: str, *shape: int) -> Tensor:
        """The buffer ``name`` in this shape, uninitialised: it holds whatever was last written to it."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return self._buffers[name][:size].view(shape)

    def padded(self, name: str, *shape: int) -> Tensor:
        """The buffer ``name``, zeroed when its shape changes.

        For a constant zero padding: it stays zero as long as all tiles overwrite the same interior.
        """
        if self._zeroed_shapes.get(name) == shape:
            return self.empty(name, *shape)
        self._zeroed_shapes[name] = shape
        return self.empty(name, *shape).zero_()
