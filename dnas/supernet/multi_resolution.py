"""The multi-resolution supernet of FasterSeg section 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dnas.networks.multi_branch import Stem, scales_below
from dnas.ops import fit_channels
from dnas.supernet.architecture import Sample
from dnas.supernet.cell import MixedOperator, RunCell, Way, run_cell, run_recomputed, weighted_sum
from dnas.supernet.ends import SuperEnds
from dnas.supernet.grid import Grid
from dnas.supernet.paths import downsampling, finer_probabilities, visits
from dnas.supernet.recomputation import recomputed


class MultiResolutionSupernet(nn.Module):
    """All cells of a grid, each a mixture of all operators at any expansion ratio, with the stems and heads.

    ``supernet(images, sample)`` runs one sample: cells mix the outputs of their two predecessors by beta (Eq. 1), apply
    the operators weighted by alpha (Eq. 2), once without and once with stride 2, at the widths that the sample chose.
    Every branch ends in the last layer at its scale and climbs back to 1/8, fused on its way with the maps its path
    left behind: in the relaxed network these are the mean over the layers at which the path may go coarser. The result
    has logits for every combination of branches that the head can aggregate.

    Weights are shared by all samples; only stem and head exist once for every ratio of ``end_ratios``.
    """

    def __init__(
        self,
        grid: Grid,
        operators: Sequence[str],
        ratios: Sequence[int],
        end_ratios: Sequence[int],
        branches: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.grid, self.operators, self.ratios = grid, tuple(operators), tuple(ratios)
        self.end_ratios, self.num_classes = tuple(sorted(set(end_ratios))), num_classes
        self.combinations = grid.branch_combinations(branches)
        self.keep = nn.ModuleDict()
        self.down = nn.ModuleDict()
        for level, layer in grid.cells():
            self._add_cell(level, layer)
        self.stems = nn.ModuleDict({str(ratio): Stem(ratio) for ratio in self.end_ratios})
        self.ends = nn.ModuleDict(
            {
                str(ratio): SuperEnds(ratio, grid.scales, self.combinations, max(max(ratios), ratio), num_classes)
                for ratio in self.end_ratios
            }
        )

    def _add_cell(self, level: int, layer: int) -> None:
        scale, last = self.grid.scales[level], layer == self.grid.last
        in_ratio = max(self.ratios) if layer else max(self.end_ratios)
        out_ratios = self.end_ratios if last else self.ratios
        widths = [ratio * scale for ratio in out_ratios]
        self.keep[f"{level}_{layer}"] = MixedOperator(self.operators, in_ratio * scale, widths)
        if not last and level + 1 < len(self.grid.scales):
            widths = [ratio * 2 * scale for ratio in self.ratios]
            self.down[f"{level}_{layer}"] = MixedOperator(self.operators, in_ratio * scale, widths, stride=2)

    def forward(
        self,
        images: Tensor,
        sample: Sample,
        run: RunCell = run_cell,
        *,
        recompute: bool = False,
        full_size: bool = True,
    ) -> dict[tuple[int, ...], Tensor]:
        """(N, 3, H, W) images -> logits (N, classes, H, W) for every combination, such as (8, 32), of final scales.

        ``run`` computes a cell. With ``recompute`` the backward pass runs stem, cells and heads a second time, and
        only what they read is kept for it. Without ``full_size`` the logits are left at 1/8, for a loss that resizes
        them itself.
        """
        inputs, outputs = self._run_cells(images, sample, run, recompute)
        skips = self._skips(inputs, sample)
        ends = cast("SuperEnds", self.ends[str(sample.end_ratio)])
        size = (images.shape[-2], images.shape[-1]) if full_size else None
        logits: dict[tuple[int, ...], Tensor] = ends(outputs, skips, size, recompute=recompute)
        return logits

    def _run_cells(
        self, images: Tensor, sample: Sample, run: RunCell, recompute: bool
    ) -> tuple[dict[tuple[int, int], Tensor], dict[int, Tensor]]:
        """The mixed input of every cell (Eq. 1) by (level, layer), and the last map of every scale."""
        stem = self.stems[str(sample.end_ratio)]
        inputs = {(0, 0): recomputed(stem, images, networks=[stem]) if recompute else stem(images)}
        outputs = {}
        for level, layer in self.grid.cells():
            x = inputs[level, layer]
            targets = self._targets(level, layer)
            ways = [self._way(level, layer, target, sample) for target in targets]
            found = run_recomputed(x, ways, run) if recompute else run(x, ways)
            for target, out in zip(targets, found, strict=True):
                if target is None:
                    outputs[self.grid.scales[level]] = out
                else:
                    inputs[target] = inputs[target] + out if target in inputs else out
        return inputs, outputs

    def _targets(self, level: int, layer: int) -> list[tuple[int, int] | None]:
        """The cells that read this one, of its own level first; None is the head."""
        if layer == self.grid.last:
            return [None]
        coarser = [level + 1] if level + 1 < len(self.grid.scales) else []
        return [(target, layer + 1) for target in (level, *coarser)]

    def _way(self, level: int, layer: int, target: tuple[int, int] | None, sample: Sample) -> Way:
        """The operators from a cell to one of its targets with all that weighs them.

        Weightings by beta and by the gate of the width are sums over whole maps like that by alpha: multiplying the few
        weights first saves passes over the maps.
        """
        grid = self.grid
        factors = []
        if target is None:
            operators, width = self.keep[f"{level}_{layer}"], sample.end_ratio * grid.scales[level]
        else:
            goal = target[0]
            operators = (self.keep if goal == level else self.down)[f"{level}_{layer}"]
            row = grid.gamma_row(*target)
            width = self.ratios[sample.choice[goal][row]] * grid.scales[goal]
            if 0 < goal < target[1]:  # two predecessors
                factors.append(sample.beta[goal][grid.beta_row(*target)][level - goal + 1])
            if sample.gate is not None:
                factors.append(sample.gate[goal][row])
        weights = sample.operator_weights(level, grid.alpha_row(level, layer))
        weighted = {self.operators[index]: _product(weight, factors) for index, weight in weights.items()}
        return Way(cast("MixedOperator", operators), weighted, width)

    def _skips(self, inputs: dict[tuple[int, int], Tensor], sample: Sample) -> dict[tuple[int, int], Tensor]:
        """For every branch scale and every finer scale, the map that the branch's path leaves behind there."""
        grid = self.grid
        finer = finer_probabilities(sample.beta, grid)
        skips = {}
        for level, branch in enumerate(grid.scales):
            if not level:
                continue
            visited = visits(finer, level, grid)
            for scale in scales_below(branch):
                source = grid.level_of(scale)
                leaving = downsampling(finer, visited, source + 1)
                layers = range(source, grid.last)
                maps = [inputs[source, layer] for layer in layers]
                skips[branch, scale] = sum_widths(maps, [leaving[layer] for layer in layers])
        return skips


def _product(weight: Tensor | None, factors: Sequence[Tensor]) -> Tensor | None:
    for factor in factors:
        weight = factor if weight is None else weight * factor
    return weight


def sum_widths(maps: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Weighted sum of maps (N, C_i, H, W) of different widths, the narrower ones filled up with zero channels."""
    by_width: dict[int, list[int]] = {}
    for index, x in enumerate(maps):
        by_width.setdefault(x.shape[1], []).append(index)
    widest = max(by_width)
    sums = [
        fit_channels(weighted_sum([maps[i] for i in group], [weights[i] for i in group]), widest)
        for group in by_width.values()
    ]
    return torch.stack(sums).sum(0) if len(sums) > 1 else sums[0]
