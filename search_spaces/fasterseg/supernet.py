"""The multi-resolution supernet (FasterSeg, section 3.1)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dnas.networks.multi_branch import Stem, scales_below
from dnas.ops import fit_channels
from dnas.ops.recomputation import recomputed
from search_spaces.fasterseg.cells import CellOutput, MixedOperator, RunCell, run_cell, run_recomputed, weighted_sum
from search_spaces.fasterseg.ends import SuperEnds
from search_spaces.fasterseg.grid import Grid
from search_spaces.fasterseg.parameters import Sample
from search_spaces.fasterseg.paths import downsampling, finer_probabilities, visits, visits_together
from search_spaces.fasterseg.selection import Selection


class MultiResolutionSupernet(nn.Module):
    """All cells of a grid as mixed operators with superkernels, the stems and the heads.

    ``supernet(images, sample)`` runs one sample. The input of a cell is the mean of its two predecessors' outputs,
    weighted by beta (Eq. 1); its outputs of stride 1 and 2 are sums of operators, weighted by alpha (Eq. 2), at the
    widths of the sample. Every branch ends in the last layer at its scale and is upsampled to 1/8, fused at each finer
    scale with the last map of its own path there: in the relaxed network the mean over all layers at which the path may
    downsample, weighted by probability. The result has logits for every combination of branches.

    All samples share the weights, except that each ratio of ``end_ratios`` has its own stem, fusions and heads.
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
        self.keep[f"{level}_{layer}"] = MixedOperator.of(self.operators, in_ratio * scale, widths)
        if not last and level + 1 < len(self.grid.scales):
            widths = [ratio * 2 * scale for ratio in self.ratios]
            self.down[f"{level}_{layer}"] = MixedOperator.of(self.operators, in_ratio * scale, widths, stride=2)

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

        ``run`` computes a cell. ``recompute``: activation checkpointing of stem, cells and heads, which the backward
        pass runs again. ``full_size``: False returns logits at 1/8, for a loss that resizes them itself.
        """
        return self.forward_batched(images, [sample], run, recompute=recompute, full_size=full_size)[0]

    def forward_batched(
        self,
        images: Tensor,
        samples: Sequence[Sample],
        run: RunCell = run_cell,
        *,
        recompute: bool = False,
        full_size: bool = True,
    ) -> list[dict[tuple[int, ...], Tensor]]:
        """The logits of several samples in one forward pass, whose cells run on all samples as one batch.

        The samples must have the same widths and operators (:func:`can_batch`); the operators' weights may differ. The
        maps of each sample are normalised with their own statistics. Stems, cells of the last layer and heads run once
        per sample.
        """
        stems = [self.stems[str(sample.end_ratio)] for sample in samples]
        if recompute:
            maps = [recomputed(stem, images, networks=[stem]) for stem in stems]
            run = functools.partial(run_recomputed, run=run)
        else:
            maps = [stem(images) for stem in stems]
        inputs, outputs = self._run_cells(maps, samples, run)
        size = (images.shape[-2], images.shape[-1]) if full_size else None
        found = []
        for sample, own_inputs, own_outputs in zip(samples, inputs, outputs, strict=True):
            ends = cast("SuperEnds", self.ends[str(sample.end_ratio)])
            found.append(ends(own_outputs, self._skips(own_inputs, sample), size, recompute=recompute))
        return found

    def _run_cells(
        self, stems: Sequence[Tensor], samples: Sequence[Sample], run: RunCell
    ) -> tuple[list[dict[tuple[int, int], Tensor]], list[dict[int, Tensor]]]:
        """Per sample, the input of every cell (Eq. 1) by (level, layer), and the final map of every scale.

        ``stems``: the output of each sample's stem.
        """
        # On a GPU each product, and each constant, is a launch.
        one = stems[0].new_ones((), dtype=samples[0].alpha[0].dtype) if stems[0].is_cuda else None
        tables = [weight_table(self.grid, sample) if sample.alpha[0].is_cuda else None for sample in samples]
        inputs = {(0, 0): _as_batch(stems)}
        outputs: list[dict[int, Tensor]] = [{} for _ in samples]
        for level, layer in self.grid.cells():
            x = inputs[level, layer]
            if layer == self.grid.last:
                for index, (part, own) in enumerate(zip(_parts(x, len(samples)), outputs, strict=True)):
                    own_tables = tables[index : index + 1]
                    output = self._output(level, layer, None, samples[index : index + 1], own_tables, one)
                    (own[self.grid.scales[level]],) = run(part, [output])
                continue
            targets = self._targets(level, layer)
            found = run(x, [self._output(level, layer, target, samples, tables, one) for target in targets])
            for target, out in zip(targets, found, strict=True):
                inputs[target] = inputs[target] + out if target in inputs else out
        parts = {cell: _parts(x, len(samples)) for cell, x in inputs.items()}
        parts[0, 0] = list(stems)
        return [{cell: x[index] for cell, x in parts.items()} for index in range(len(samples))], outputs

    def forward_selection(
        self,
        images: Tensor,
        selection: Selection,
        end_ratio: int,
        run: RunCell = run_cell,
        *,
        full_size: bool = True,
    ) -> Tensor:
        """(N, 3, H, W) images -> logits (N, classes, H, W) of one discrete network, with the weights of its choices.

        Only the cells of its branches run. The result is that of ``forward`` for a one-hot sample of these choices.
        Without ``full_size`` the logits are left at 1/8.
        """
        grid, paths = self.grid, selection.paths(self.grid)
        inputs = {(0, 0): self.stems[str(end_ratio)](images)}
        outputs: dict[int, Tensor] = {}
        for layer in range(grid.layers):
            levels = sorted({path[layer] for path in paths.values()})
            for level in levels:
                if layer == grid.last:
                    output = self._selected(selection, level, layer, level, end_ratio)
                    (outputs[grid.scales[level]],) = run(inputs[level, layer], [output])
                    continue
                targets = sorted({path[layer + 1] for path in paths.values() if path[layer] == level})
                wanted = [self._selected(selection, level, layer, target, end_ratio) for target in targets]
                for target, out in zip(targets, run(inputs[level, layer], wanted), strict=True):
                    inputs[target, layer + 1] = out
        skips = {
            (branch, grid.scales[level]): inputs[level, layer - 1]
            for branch, entered in selection.entered.items()
            for level, layer in enumerate(entered)
        }
        ends = cast("SuperEnds", self.ends[str(end_ratio)])
        size = (images.shape[-2], images.shape[-1]) if full_size else None
        logits: dict[tuple[int, ...], Tensor] = ends(outputs, skips, size, combinations=[selection.branches])
        return logits[selection.branches]

    def _selected(self, selection: Selection, level: int, layer: int, target: int, end_ratio: int) -> CellOutput:
        """The one operator of a cell towards the level of its target."""
        operators = (self.keep if target == level else self.down)[f"{level}_{layer}"]
        ratio = end_ratio if layer == self.grid.last else selection.ratios[target, layer + 1]
        name = selection.operators[level, layer]
        return CellOutput(cast("MixedOperator", operators), [{name: None}], ratio * self.grid.scales[target])

    def _targets(self, level: int, layer: int) -> list[tuple[int, int]]:
        """The cells that read the output of this cell, that of its own level first."""
        coarser = [level + 1] if level + 1 < len(self.grid.scales) else []
        return [(target, layer + 1) for target in (level, *coarser)]

    def _output(
        self,
        level: int,
        layer: int,
        target: tuple[int, int] | None,
        samples: Sequence[Sample],
        tables: Sequence[_WeightTable | None],
        one: Tensor | None,
    ) -> CellOutput:
        """The operators from a cell to one of its targets, with their weights; target None is the head."""
        grid, first = self.grid, samples[0]
        if target is None:
            operators, width = self.keep[f"{level}_{layer}"], first.end_ratio * grid.scales[level]
        else:
            into = target[0]
            operators = (self.keep if into == level else self.down)[f"{level}_{layer}"]
            width = self.ratios[first.choice[into][grid.gamma_row(*target)]] * grid.scales[into]
        weights = [
            self._weights(level, layer, target, sample, table) for sample, table in zip(samples, tables, strict=True)
        ]
        return CellOutput(cast("MixedOperator", operators), weights, width, one)

    def _weights(
        self,
        level: int,
        layer: int,
        target: tuple[int, int] | None,
        sample: Sample,
        table: _WeightTable | None,
    ) -> dict[str, Tensor | None]:
        """The weights of the operators that run, by name.

        Beta and the gate of the width multiply whole maps, as alpha does: multiplying the scalars first saves memory
        traffic.
        """
        grid = self.grid
        if table is not None:
            row = table[level, None if target is None else target[0]][grid.alpha_row(level, layer)]
            chosen = sample.operators_of(level, grid.alpha_row(level, layer))
            return dict(zip((self.operators[index] for index in chosen), row, strict=True))
        factors = []
        if target is not None:
            into = target[0]
            if 0 < into < target[1]:  # two predecessors
                factors.append(sample.beta[into][grid.beta_row(*target)][level - into + 1])
            if sample.gate is not None:
                factors.append(sample.gate[into][grid.gamma_row(*target)])
        weights = sample.operator_weights(level, grid.alpha_row(level, layer))
        return {self.operators[index]: _product(weight, factors) for index, weight in weights.items()}

    def _skips(self, inputs: dict[tuple[int, int], Tensor], sample: Sample) -> dict[tuple[int, int], Tensor]:
        """The skip map of every branch scale and every finer scale: the last map of the branch's path there."""
        grid = self.grid
        leaving = leaving_probabilities(grid, sample.beta)
        skips = {}
        for level, branch in enumerate(grid.scales):
            for scale in scales_below(branch) if level else ():
                source = grid.level_of(scale)
                layers = range(source, grid.last)
                maps = [inputs[source, layer] for layer in layers]
                skips[branch, scale] = sum_widths(maps, leaving[level, source][source:])
        return skips


def leaving_probabilities(grid: Grid, beta: Sequence[Tensor]) -> dict[tuple[int, int], Sequence[Tensor] | Tensor]:
    """By the level of a branch and a finer one, for every layer but the last: that its path leaves that level there."""
    finer = finer_probabilities(beta, grid)
    pairs = [(level, source) for level in grid.levels for source in range(level)]
    if finer[0].is_cuda:
        entering = visits_together(finer)[1:] * torch.stack(finer[1:])[:, None]
        return {(level, source): entering[:, level, source + 1] for level, source in pairs}
    visited = [visits(finer, level, grid) for level in grid.levels]
    return {(level, source): downsampling(finer, visited[level], source + 1) for level, source in pairs}


_WeightTable = dict[tuple[int, int | None], list[tuple[Tensor | None, ...]]]
"""By level and target level (None: the head), the weights of the operators that run in each cell, by row of alpha."""


def weight_table(grid: Grid, sample: Sample) -> _WeightTable:
    """The weights of all operators of a sample: two products for a level instead of two for each operator."""
    table: _WeightTable = {}
    for level in grid.levels:
        cells = grid.alpha_rows(level) - 1  # without the last layer, which the head reads
        rows = sample.alpha[level] if sample.operators is None else _columns(sample.operator_gate, level)
        table[level, None] = [()] * cells + _unbound(None if rows is None else rows[cells:], 1)
        for into in (level, level + 1):
            if into >= len(grid.scales):
                continue
            weights = None if rows is None else rows[:cells]
            if into:
                # The first cell of a level has one predecessor, so its input has no beta.
                beta = sample.beta[into][:, level - into + 1]
                factors = beta if into == level else torch.cat([beta.new_ones(1), beta])
                weights = _scaled(weights, factors)
            if sample.gate is not None:
                gate = sample.gate[into]
                weights = _scaled(weights, gate[1:] if into == level > 0 else gate)
            table[level, into] = _unbound(weights, cells)
    return table


def _columns(tables: Sequence[Tensor] | None, level: int) -> Tensor | None:
    """(cells, 1): one weight for the one operator of each cell of a level."""
    return None if tables is None else tables[level][:, None]


def _scaled(weights: Tensor | None, factors: Tensor) -> Tensor:
    """(cells, operators) times (cells,); None is 1."""
    return factors[:, None] if weights is None else weights * factors[:, None]


def _unbound(weights: Tensor | None, cells: int) -> list[tuple[Tensor | None, ...]]:
    """The scalars of (cells, operators) by cell; None is 1."""
    if weights is None:
        return [(None,)] * cells
    columns = weights.shape[1]
    scalars = weights.flatten().unbind()
    return [scalars[first : first + columns] for first in range(0, len(scalars), columns)]


def can_batch(one: Sample, other: Sample) -> bool:
    """Whether two samples run the same operators at the same widths, so that they can run as one batch."""
    return one.choice == other.choice and one.operators == other.operators


def _as_batch(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate maps (N, C_i, H, W) to (sum of N, max C_i, H, W), padding narrower ones with zero channels."""
    widest = max(x.shape[1] for x in maps)
    return maps[0] if len(maps) == 1 else torch.cat([fit_channels(x, widest) for x in maps])


def _parts(x: Tensor, number: int) -> Sequence[Tensor]:
    return x.chunk(number) if number > 1 else [x]


def _product(weight: Tensor | None, factors: Sequence[Tensor]) -> Tensor | None:
    for factor in factors:
        weight = factor if weight is None else weight * factor
    return weight


def sum_widths(maps: Sequence[Tensor], weights: Sequence[Tensor] | Tensor) -> Tensor:
    """Weighted sum of maps (N, C_i, H, W) of different widths, padding narrower ones with zero channels.

    Where ``weights`` is one tensor (maps,), the maps of a width are summed by one kernel, which needs a copy of them.
    """
    by_width: dict[int, list[int]] = {}
    for index, x in enumerate(maps):
        by_width.setdefault(x.shape[1], []).append(index)
    widest = max(by_width)
    sums = []
    for group in by_width.values():
        chosen = [maps[index] for index in group]
        if isinstance(weights, Tensor):
            factors = weights if len(by_width) == 1 else torch.stack([weights[index] for index in group])
            total = torch.tensordot(factors.to(chosen[0].dtype), torch.stack(chosen), dims=1)
        else:
            total = weighted_sum(chosen, [weights[index] for index in group])
        sums.append(fit_channels(total, widest))
    return torch.stack(sums).sum(0) if len(sums) > 1 else sums[0]
