"""Mixed operators: the weighted sum of all operators of a cell (FasterSeg Eq. 2), with shared computation.

All operators of a cell, of stride 1 and of stride 2, read the same map. So the first convolutions of each stride are
computed as one convolution, and those of all zoomed operators as another one, on the downsampled map. The weights are
folded into the operators' last batch norms, and zoomed operators are summed before they are upsampled once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dnas.ops import (
    ConvolutionChain,
    SearchableOperator,
    fused_bn_relu,
    halve,
    make_superkernel,
    resize,
    sliced_conv2d,
)
from dnas.ops.recomputation import recomputed


class MixedOperator(nn.ModuleDict):
    """The candidate operators of a connection; the output is their weighted sum."""

    def __init__(self, operators: Mapping[str, SearchableOperator], stride: int = 1) -> None:
        """Raises TypeError for a module that is not a searchable operator or has another stride."""
        for name, operator in operators.items():
            if not isinstance(operator, SearchableOperator):
                raise TypeError(f"operator {name}: given {type(operator).__name__}, expected a SearchableOperator")
            if operator.stride != stride:
                raise TypeError(f"operator {name}: given stride {operator.stride}, expected {stride}")
        super().__init__(operators)
        self.stride = stride

    @classmethod
    def of(cls, names: Sequence[str], in_channels: int, widths: Sequence[int], stride: int = 1) -> MixedOperator:
        """Build the operators with these names, see :data:`dnas.ops.OPERATORS`."""
        return cls({name: make_superkernel(name, in_channels, widths, stride) for name in names}, stride)

    def operator(self, name: str) -> SearchableOperator:
        """The operator called ``name``."""
        return cast("SearchableOperator", self[name])

    def forward(self, x: Tensor, weights: Tensor, width: int) -> Tensor:
        """(N, C, H, W) and non-negative weights (operators,) -> (N, width, ceil(H / stride), ceil(W / stride))."""
        return run_cell(x, [CellOutput(self, [dict(zip(self, weights.unbind(), strict=True))], width)])[0]


@dataclass(frozen=True)
class CellOutput:
    """One output of a cell: its operators, the weights of those that run (None is 1), and ``width``, its channels.

    weights: one mapping for each of several equal parts of the batch, each of which is normalised with its own
        statistics. The same operators run on all parts.
    one: a scalar 1 on the device; None: each norm that needs it makes it.
    """

    operators: MixedOperator
    weights: Sequence[Mapping[str, Tensor | None]]
    width: int
    one: Tensor | None = None

    def weights_of(self, name: str) -> list[Tensor | None]:
        """The weights of one operator by part."""
        return [part[name] for part in self.weights]


RunCell = Callable[[Tensor, Sequence[CellOutput]], list[Tensor]]
"""A function that runs a cell: one input map -> one map per output."""


@dataclass(frozen=True)
class _Branch:
    """The convolutions of one operator; ``output`` is the index of the cell output that they are added to."""

    output: int
    chain: ConvolutionChain
    weights: Sequence[Tensor | None]
    width: int
    one: Tensor | None


def run_cell(x: Tensor, outputs: Sequence[CellOutput]) -> list[Tensor]:
    """The weighted sum of the operators for every output: (N, C, H, W) -> (N, width, ceil(H / stride), ...)."""
    sums: list[Tensor | None] = [None] * len(outputs)
    branches = _branches(outputs)
    _add_zoomed(sums, x, [branch for branch in branches if branch.chain.zoomed], outputs)
    for stride in sorted({output.operators.stride for output in outputs}):
        plain = [branch for branch in branches if not branch.chain.zoomed]
        _add_plain(sums, x, [one for one in plain if outputs[one.output].operators.stride == stride], stride)
    for index, output in enumerate(outputs):
        for name in output.weights[0]:
            operator = output.operators.operator(name)
            if operator.chain() is None:
                sums[index] = operator.add_weighted(sums[index], x, output.width, output.weights_of(name))
    return [total for total in sums if total is not None]


def run_recomputed(x: Tensor, outputs: Sequence[CellOutput], run: RunCell = run_cell) -> list[Tensor]:
    """Run a cell with activation checkpointing: only ``x`` is saved, the backward pass runs the cell again."""
    found: list[Tensor] = recomputed(lambda x: run(x, outputs), x, networks=[one.operators for one in outputs])
    return found


def _branches(outputs: Sequence[CellOutput]) -> list[_Branch]:
    """The operators that are chains of convolutions."""
    return [
        _Branch(index, chain, output.weights_of(name), output.width, output.one)
        for index, output in enumerate(outputs)
        for name in output.weights[0]
        if (chain := output.operators.operator(name).chain()) is not None
    ]


def _run(x: Tensor, branches: Sequence[_Branch], stride: int) -> list[Tensor]:
    """The weighted output of every branch."""
    first = [branch.chain.layers[0] for branch in branches]
    widths = [branch.width for branch in branches]
    buffers = [layer.gradient_buffers.get("weight") for layer in first]
    convolved = sliced_conv2d(x, [layer.weight for layer in first], stride, widths, buffers)
    normed = fused_bn_relu(
        convolved,
        [layer.norm.of(branch.width) for layer, branch in zip(first, branches, strict=True)],
        [branch.weights if len(branch.chain.layers) == 1 else [None] * len(branch.weights) for branch in branches],
        branches[0].one,
    )
    results = []
    parts = [normed] if len(branches) == 1 else normed.split_with_sizes(widths, dim=1)
    for part, branch in zip(parts, branches, strict=True):
        out = part
        for number, layer in enumerate(branch.chain.layers[1:], start=2):
            buffers = [layer.gradient_buffers.get("weight")]
            out = fused_bn_relu(
                sliced_conv2d(out, [layer.weight], layer.stride, [branch.width], buffers),
                [layer.norm.of(branch.width)],
                [branch.weights if number == len(branch.chain.layers) else [None] * len(branch.weights)],
            )
        results.append(out)
    return results


def _add_zoomed(
    sums: list[Tensor | None], x: Tensor, branches: Sequence[_Branch], outputs: Sequence[CellOutput]
) -> None:
    """Add the zoomed operators of all outputs."""
    if not branches:
        return
    small: list[Tensor | None] = [None] * len(outputs)
    for out, branch in zip(_run(halve(x), branches, 1), branches, strict=True):
        small[branch.output] = _add(small[branch.output], out)
    for index, total in enumerate(small):
        if total is not None:
            size = (x.shape[-2], x.shape[-1])
            sums[index] = _add(sums[index], total if outputs[index].operators.stride == 2 else resize(total, size))


def _add_plain(sums: list[Tensor | None], x: Tensor, branches: Sequence[_Branch], stride: int) -> None:
    """Add the operators that convolve ``x`` with this stride."""
    if branches:
        for out, branch in zip(_run(x, branches, stride), branches, strict=True):
            sums[branch.output] = _add(sums[branch.output], out)


def _add(total: Tensor | None, x: Tensor) -> Tensor:
    return x if total is None else total + x


def weighted_sum(maps: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Sum of maps of equal shape, each multiplied by its scalar weight."""
    total = maps[0] * weights[0].to(maps[0].dtype)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        total = torch.addcmul(total, x, weight.to(x.dtype))  # one pass over memory instead of two
    return total
