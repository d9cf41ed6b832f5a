"""The expected latency of a sample: exact, differentiable, with gradients decoupled by granularity.

The expectation is over the discrete networks that a sample describes: operators are sampled from alpha, predecessors
from beta and widths from gamma, independently. The expectation of one operator is a bilinear form of the widths'
probabilities and a slice of the table. Along the layers it is a recursion over the expected latency up to a cell. For
several branches it is the sum over the branches minus the expected latency of their shared prefixes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dnas.latency.spec import OperatorSpec
from dnas.networks.multi_branch import scales_below
from search_spaces.fasterseg.parameters import Sample
from search_spaces.fasterseg.paths import downsampling, finer_probabilities, meetings, visits
from search_spaces.fasterseg.plan import NetworkPlan
from search_spaces.fasterseg.signatures import cell_signature, fuse_signature, head_signature, stem_signature

Lookup = Callable[[OperatorSpec], float]


@dataclass(frozen=True)
class DecoupledWeights:
    """Factors of the latency's gradient with respect to alpha, beta and gamma: w1, w2, w3 of FasterSeg Eq. 3."""

    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0

    def scale(self, sample: Sample) -> Sample:
        """The same sample, whose gradients are multiplied by the factors in the backward pass."""
        return dataclasses.replace(
            sample,
            alpha=tuple(_scale_gradient(x, self.alpha) for x in sample.alpha),
            beta=tuple(_scale_gradient(x, self.beta) for x in sample.beta),
            gamma=tuple(_scale_gradient(x, self.gamma) for x in sample.gamma),
        )


def on_host(sample: Sample) -> Sample:
    """A sample whose probabilities are on the CPU; those of a device are copied together, with their gradients."""
    tables = [*sample.alpha, *sample.beta, *sample.gamma]
    if not tables[0].is_cuda:
        return sample
    flat = torch.cat([table.flatten() for table in tables]).cpu()
    parts = iter(flat.split_with_sizes([table.numel() for table in tables]))

    def moved(group: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(next(parts).view_as(table) for table in group)

    return dataclasses.replace(sample, alpha=moved(sample.alpha), beta=moved(sample.beta), gamma=moved(sample.gamma))


@dataclass(frozen=True)
class Sensitivities:
    """Change of the supernet's latency in ms when one granularity goes from its fastest to its slowest choice.

    FasterSeg Table 2; the other granularities stay uniform.
    """

    operator: float
    scale: float
    ratio: float

    def balanced(self) -> DecoupledWeights:
        """The weights that balance them: w1 dO = w2 ds = w3 dX with w1 + w2 + w3 = 1 (FasterSeg section 3.2).

        Sensitivities are at least 1/2000 of the largest; otherwise a near-zero one would take all the weight.
        """
        values = [self.operator, self.scale, self.ratio]
        floor = max(values) / 2000
        if floor <= 0:
            return DecoupledWeights(1 / 3, 1 / 3, 1 / 3)
        inverse = [1 / max(value, floor) for value in values]
        return DecoupledWeights(*(value / sum(inverse) for value in inverse))


class ExpectedLatency:
    """Latencies of all cells, stems, fusions and heads as tensors; calling it returns a sample's expected latency."""

    def __init__(self, plan: NetworkPlan, lookup: Lookup) -> None:
        self.plan = plan
        grid, size, end_ratio = plan.grid, plan.image_size, plan.end_ratio
        self.stem = lookup(stem_signature(end_ratio, size, plan.channels))
        self.head = lookup(head_signature(end_ratio, plan.branches, plan.num_classes, size))
        self._cells: dict[tuple[int, int, bool, bool], Tensor] = {}
        for level in grid.levels:
            for stride in (1, 2) if level + 1 < len(grid.scales) else (1,):
                for first in (False, True) if level == 0 else (False,):
                    for last in (False, True) if stride == 1 else (False,):
                        self._cells[level, stride, first, last] = self._cell_prices(level, stride, first, last, lookup)
        self._fuses = {
            scale: torch.tensor(
                [lookup(fuse_signature(ratio * scale, scale, end_ratio, size)) for ratio in plan.ratios]
            )
            for scale in grid.scales[:-1]
        }
        self._stem_fuse = lookup(fuse_signature(8 * end_ratio, 8, end_ratio, size)) if len(grid.scales) > 1 else 0.0

    def _cell_prices(self, level: int, stride: int, first: bool, last: bool, lookup: Lookup) -> Tensor:
        """(operators, input ratios, output ratios) ms; one input ratio at the stem, one output ratio at the head."""
        plan, scale = self.plan, self.plan.grid.scales[level]
        ins = (plan.end_ratio,) if first else plan.ratios
        outs = (plan.end_ratio,) if last else plan.ratios

        def price(operator: str, a: int, b: int) -> float:
            if operator == "skip" and stride == 1:
                return 0.0  # removed from the derived network
            return lookup(cell_signature(operator, a * scale, b * scale * stride, scale, stride, plan.image_size))

        return torch.tensor([[[price(name, a, b) for b in outs] for a in ins] for name in plan.operators])

    def __call__(self, sample: Sample, weights: DecoupledWeights | None = None) -> dict[tuple[int, ...], Tensor]:
        """Expected latency in ms for every combination of branches; ``weights`` only scale the gradients.

        It is computed on the CPU: thousands of operations on a few values would cost a GPU only launches.
        """
        sample = on_host(sample)
        if weights is not None:
            sample = weights.scale(sample)
        grid, last = self.plan.grid, self.plan.grid.last
        finer = finer_probabilities(sample.beta, grid)
        prefix = self._prefix_latency(sample, finer)
        single = {
            level: prefix[last][level] + self._cell(sample, level, last, 1) + self._fusion_latency(sample, finer, level)
            for level in grid.levels
        }
        result = {}
        for combination in self.plan.combinations():
            levels = [grid.level_of(scale) for scale in combination]
            total = self.stem + self.head + torch.stack([single[level] for level in levels]).sum()
            for fine, coarse in itertools.pairwise(levels):
                # Paths in the grid cannot cross, so subtracting the prefix shared by each adjacent pair is exact.
                shared = meetings(finer, fine, coarse, grid)
                total = total - torch.stack([(m * r).sum() for m, r in zip(shared, prefix, strict=True)]).sum()
            result[combination] = total
        return result

    def _connection(self, sample: Sample, level: int, layer: int) -> Tensor:
        """Probabilities of the widths of the connection into a cell; the stem's output has one width."""
        if layer == 0:
            return sample.gamma[0].new_ones(1)
        return sample.gamma[level][self.plan.grid.gamma_row(level, layer)]

    def _cell(self, sample: Sample, level: int, layer: int, stride: int) -> Tensor:
        """Expected latency in ms of one cell's operator."""
        grid = self.plan.grid
        is_last = layer == grid.last
        prices = self._cells[level, stride, layer == 0, is_last].to(sample.alpha[0])
        source = self._connection(sample, level, layer)
        target = source.new_ones(1) if is_last else self._connection(sample, level + stride - 1, layer + 1)
        alpha = sample.alpha[level][grid.alpha_row(level, layer)]
        return torch.einsum("k,i,kio,o->", alpha, source, prices, target)

    def _prefix_latency(self, sample: Sample, finer: Sequence[Tensor]) -> list[Tensor]:
        """Expected latency in ms from the stem's output to the input of each cell: (levels,) for every layer.

        T(j, l) = b0 [T(j-1, l-1) + down(j-1, l-1)] + b1 [T(j, l-1) + keep(j, l-1)].
        """
        grid = self.plan.grid
        zero = sample.alpha[0].new_zeros(())
        layers = [torch.stack([zero for _ in grid.levels])]
        for layer in range(1, grid.layers):
            row = []
            for level in grid.levels:
                time = zero
                if level and layer >= level:
                    down = layers[-1][level - 1] + self._cell(sample, level - 1, layer - 1, 2)
                    time = time + finer[layer][level] * down
                if layer > level:
                    keep = layers[-1][level] + self._cell(sample, level, layer - 1, 1)
                    time = time + (1 - finer[layer][level]) * keep
                row.append(time)
            layers.append(torch.stack(row))
        return layers

    def _fusion_latency(self, sample: Sample, finer: Sequence[Tensor], level: int) -> Tensor:
        """Expected latency in ms of the fusions of the branch that ends at ``level``."""
        grid = self.plan.grid
        total = sample.alpha[0].new_zeros(())
        if not level:
            return total
        visited = visits(finer, level, grid)
        for scale in scales_below(grid.scales[level]):
            source = grid.level_of(scale)
            prices = self._fuses[scale].to(total)
            leaving = downsampling(finer, visited, source + 1)
            for layer in range(source, grid.last):
                if layer == 0:
                    step = total.new_tensor(self._stem_fuse)
                else:
                    step = (self._connection(sample, source, layer) * prices).sum()
                total = total + leaving[layer] * step
        return total

    def sensitivities(self) -> Sensitivities:
        """The sensitivity of the latency to each granularity, averaged over the combinations of branches."""
        plan = self.plan

        def spread(samples: Sequence[Sample]) -> float:
            times = [float(torch.stack(list(self(sample).values())).mean()) for sample in samples]
            return max(times) - min(times)

        return Sensitivities(
            operator=spread([uniform_sample(plan, alpha=choice) for choice in range(len(plan.operators))]),
            scale=spread([uniform_sample(plan, beta=choice) for choice in range(2)]),
            ratio=spread([uniform_sample(plan, gamma=choice) for choice in range(len(plan.ratios))]),
        )


def uniform_sample(
    plan: NetworkPlan,
    *,
    alpha: int | None = None,
    beta: int | None = None,
    gamma: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Sample:
    """The sample with uniform probabilities, except for granularities with a given choice, which are one-hot."""
    grid = plan.grid

    def table(rows: int, columns: int, choice: int | None) -> Tensor:
        if choice is None:
            return torch.full((rows, columns), 1 / columns, dtype=dtype)
        return torch.nn.functional.one_hot(torch.full((rows,), choice), columns).to(dtype)

    levels = grid.levels
    return Sample(
        alpha=tuple(table(grid.alpha_rows(level), len(plan.operators), alpha) for level in levels),
        beta=tuple(table(grid.beta_rows(level), 2, beta) for level in levels),
        gamma=tuple(table(grid.gamma_rows(level), len(plan.ratios), gamma) for level in levels),
        choice=tuple((gamma or 0,) * grid.gamma_rows(level) for level in levels),
        gate=None,
        end_ratio=plan.end_ratio,
    )


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    return x.detach() + factor * (x - x.detach())
