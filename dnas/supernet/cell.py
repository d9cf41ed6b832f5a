"""Mixed operators: all choices of a cell, weighted (FasterSeg Eq. 2), and what they can share.

The operators of a cell read one map, those without stride and those of stride 2 that lead to the coarser level alike.
Their first convolutions of a stride therefore run as one, and so do those of all zoomed operators, which read the same
halved map whatever their stride. The weights go into the operators' last norms, and zoomed operators are added up
before they are brought back to full size, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dnas.ops import (
    SuperConvBlock,
    SuperConvNormAct,
    SuperFactorizedReduce,
    SuperZoomedConv,
    fit_channels,
    halve,
    joint_conv2d,
    joint_norm_act,
    make_superkernel,
    resize,
)
from dnas.supernet.recomputation import recomputed


class MixedOperator(nn.ModuleDict):
    """Every operator between the same maps; the output is their weighted sum."""

    def __init__(self, operators: Sequence[str], in_channels: int, widths: Sequence[int], stride: int = 1) -> None:
        super().__init__({name: make_superkernel(name, in_channels, widths, stride) for name in operators})
        self.stride = stride

    def forward(self, x: Tensor, weights: Tensor, width: int) -> Tensor:
        """(N, C, H, W) and (operators,) weights of at least 0 -> (N, width, ceil(H / stride), ceil(W / stride))."""
        return run_cell(x, [Way(self, [dict(zip(self, weights.unbind(), strict=True))], width)])[0]


@dataclass(frozen=True)
class Way:
    """One way out of a cell: its operators, the weights of those that run (None is 1), the width of the result.

    weights: one mapping for each of some equal parts of the batch, which pass as if they came one after the other: the
        same operators run on all, but norms go by a part's statistics.
    """

    operators: MixedOperator
    weights: Sequence[Mapping[str, Tensor | None]]
    width: int


RunCell = Callable[[Tensor, Sequence[Way]], list[Tensor]]
"""Runs a cell: one map in, and for every way one out."""


@dataclass(frozen=True)
class _Block:
    """One or two convolutions that run for the way ``way``; ``weights`` are those of the result, by parts."""

    way: int
    layers: tuple[SuperConvNormAct, ...]
    weights: Sequence[Tensor | None]
    width: int


def run_cell(x: Tensor, ways: Sequence[Way]) -> list[Tensor]:
    """The weighted sum of operators on (N, C, H, W) for every way, (N, width, ceil(H / stride), ceil(W / stride))."""
    sums: list[Tensor | None] = [None] * len(ways)
    _add_zoomed(sums, x, ways)
    for stride in sorted({way.operators.stride for way in ways}):
        _add_convolved(sums, x, ways, stride)
    for index, way in enumerate(ways):
        if "skip" in way.weights[0]:
            sums[index] = _with_skip(sums[index], x, way)
    return [total for total in sums if total is not None]


def run_recomputed(x: Tensor, ways: Sequence[Way], run: RunCell = run_cell) -> list[Tensor]:
    """What ``run`` gives, keeping nothing but ``x`` for the backward pass, which runs the cell a second time."""
    outputs: list[Tensor] = recomputed(lambda x: run(x, ways), x, networks=[way.operators for way in ways])
    return outputs


def _blocks(ways: Sequence[Way], stride: int | None) -> list[_Block]:
    """The plain convolutions of a stride, or, without one, those within zoomed operators."""
    found = []
    for index, way in enumerate(ways):
        for name in way.weights[0]:
            module = way.operators[name]
            if stride is None and isinstance(module, SuperZoomedConv):
                module = module.block
            elif stride != way.operators.stride:
                continue
            if isinstance(module, SuperConvBlock):
                weights = [part[name] for part in way.weights]
                found.append(_Block(index, module.convolutions(), weights, way.width))
    return found


def _run(x: Tensor, blocks: Sequence[_Block], stride: int) -> list[Tensor]:
    """The weighted result of every block."""
    first = [block.layers[0] for block in blocks]
    widths = [block.width for block in blocks]
    convolved = joint_conv2d(x, [layer.weight for layer in first], stride, widths)
    joined = joint_norm_act(
        convolved,
        [layer.norm.of(block.width) for layer, block in zip(first, blocks, strict=True)],
        [block.weights if len(block.layers) == 1 else [None] * len(block.weights) for block in blocks],
    )
    outputs = []
    for part, block in zip(joined.split_with_sizes(widths, dim=1), blocks, strict=True):
        out = part
        for number, layer in enumerate(block.layers[1:], start=2):
            out = joint_norm_act(
                joint_conv2d(out, [layer.weight], layer.stride, [block.width]),
                [layer.norm.of(block.width)],
                [block.weights if number == len(block.layers) else [None] * len(block.weights)],
            )
        outputs.append(out)
    return outputs


def _add_zoomed(sums: list[Tensor | None], x: Tensor, ways: Sequence[Way]) -> None:
    """The zoomed operators of all ways."""
    blocks = _blocks(ways, None)
    if not blocks:
        return
    small: list[Tensor | None] = [None] * len(ways)
    for out, block in zip(_run(halve(x), blocks, 1), blocks, strict=True):
        small[block.way] = _plus(small[block.way], out)
    for index, total in enumerate(small):
        if total is not None:
            size = (x.shape[-2], x.shape[-1])
            sums[index] = _plus(sums[index], total if ways[index].operators.stride == 2 else resize(total, size))


def _add_convolved(sums: list[Tensor | None], x: Tensor, ways: Sequence[Way], stride: int) -> None:
    """The plain convolutions of all ways of a stride."""
    blocks = _blocks(ways, stride)
    if blocks:
        for out, block in zip(_run(x, blocks, stride), blocks, strict=True):
            sums[block.way] = _plus(sums[block.way], out)


def _with_skip(total: Tensor | None, x: Tensor, way: Way) -> Tensor:
    """``total`` and the weighted skip."""
    module, weights = way.operators["skip"], [part["skip"] for part in way.weights]
    if isinstance(module, SuperFactorizedReduce):
        norm = module.norm.of(way.width)
        return _plus(total, joint_norm_act(module.halves(x, way.width), [norm], [weights]))
    same = fit_channels(x, way.width)
    weight = weights[0] if len(weights) == 1 else _by_image(weights, same)
    if weight is None:
        return _plus(total, same)
    weight = weight.to(same.dtype)
    return same * weight if total is None else torch.addcmul(total, same, weight)


def _by_image(weights: Sequence[Tensor | None], x: Tensor) -> Tensor:
    """(N, 1, 1, 1): the weight of each image of (N, C, H, W)."""
    each = x.shape[0] // len(weights)
    parts = [x.new_ones(each) if weight is None else weight.expand(each) for weight in weights]
    return torch.cat(parts)[:, None, None, None]


def _plus(total: Tensor | None, x: Tensor) -> Tensor:
    return x if total is None else total + x


def weighted_sum(maps: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Sum of the maps, all of one shape, each times its scalar weight."""
    total = maps[0] * weights[0].to(maps[0].dtype)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        total = torch.addcmul(total, x, weight.to(x.dtype))  # one pass over memory instead of two
    return total
