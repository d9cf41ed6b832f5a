"""The multi-resolution supernet of FasterSeg section 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dnas.networks.multi_branch import Stem, scales_below
from dnas.ops import fit_channels
from dnas.supernet.architecture import Sample
from dnas.supernet.cell import MixedOperator, weighted_sum
from dnas.supernet.ends import SuperEnds
from dnas.supernet.grid import Grid
from dnas.supernet.paths import downsampling, finer_probabilities, visits


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

    def forward(self, images: Tensor, sample: Sample) -> dict[tuple[int, ...], Tensor]:
        """(N, 3, H, W) images -> logits (N, classes, H, W) for every combination, such as (8, 32), of final scales."""
        inputs = self._cell_inputs(images, sample)
        grid, ratio = self.grid, sample.end_ratio
        outputs = {}
        for level, scale in enumerate(grid.scales):
            keep = cast("MixedOperator", self.keep[f"{level}_{grid.last}"])
            weights = sample.alpha[level][grid.alpha_row(level, grid.last)]
            outputs[scale] = keep(inputs[level, grid.last], weights, ratio * scale)
        skips = self._skips(inputs, sample)
        ends = cast("SuperEnds", self.ends[str(ratio)])
        logits: dict[tuple[int, ...], Tensor] = ends(outputs, skips, (images.shape[-2], images.shape[-1]))
        return logits

    def _cell_inputs(self, images: Tensor, sample: Sample) -> dict[tuple[int, int], Tensor]:
        """The mixed input of every cell (Eq. 1), by (level, layer)."""
        grid = self.grid
        inputs: dict[tuple[int, int], Tensor] = {}
        for level, layer in grid.cells():
            if layer == 0:
                inputs[level, layer] = self.stems[str(sample.end_ratio)](images)
                continue
            row = grid.gamma_row(level, layer)
            width = self.ratios[sample.choice[level][row]] * grid.scales[level]
            gate = None if sample.gate is None else sample.gate[level][row]
            parts = []
            for source, mixed, share in self._predecessors(level, layer, sample):
                weights = sample.alpha[source][grid.alpha_row(source, layer - 1)]
                # Both weightings are sums over whole maps: multiplying the few weights first saves a pass over them.
                weights = weights if share is None else weights * share
                weights = weights if gate is None else weights * gate
                parts.append(mixed(inputs[source, layer - 1], weights, width))
            inputs[level, layer] = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return inputs

    def _predecessors(self, level: int, layer: int, sample: Sample) -> list[tuple[int, MixedOperator, Tensor | None]]:
        """(level, operator, beta weight) of what feeds a cell; a cell with one predecessor has no weight."""
        own = cast("MixedOperator", self.keep[f"{level}_{layer - 1}"]) if layer > level else None
        finer = cast("MixedOperator", self.down[f"{level - 1}_{layer - 1}"]) if level else None
        if own is not None and finer is not None:
            beta = sample.beta[level][self.grid.beta_row(level, layer)]
            return [(level - 1, finer, beta[0]), (level, own, beta[1])]
        if own is not None:
            return [(level, own, None)]
        assert finer is not None
        return [(level - 1, finer, None)]

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
