"""Decoding of logits into a discrete architecture (FasterSeg, section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from derive.multi_branch.architecture import Branch, Cell, MultiBranchArchitecture
from search_spaces.fasterseg import Grid, NetworkPlan
from search_spaces.fasterseg.selection import Place, Selection, branch_paths, levels_of


def decode(
    logits: Mapping[str, Tensor], plan: NetworkPlan, branches: Sequence[int], provenance: Mapping[str, object] = {}
) -> MultiBranchArchitecture:
    """The discrete architecture of the branches that end at the scales ``branches``.

    ``logits`` are those of :meth:`ArchitectureParameters.named_logits`; without gamma every ratio is the widest.
    Operators and ratios are the argmax of alpha and gamma. A branch downsamples at the layers with the largest product
    of beta_0 (footnote 2). Skips of stride 1 are removed; their neighbours use the narrowest width in between.
    """
    likelihoods = Likelihoods(logits, plan)
    return assemble(likelihoods, likelihoods.likeliest(branches), provenance)


def downsampling_layers(logits: Mapping[str, Tensor], grid: Grid, level: int) -> tuple[tuple[int, ...], float]:
    """The layers at which the branch of ``level`` enters levels 1 to ``level``, and the margin to the second best.

    The joint argmax of the product of the probabilities to enter each level (footnote 2). The margin is the ratio of
    the second best product to the best, from 0 (no doubt) to 1 (a tie).
    """
    scored = scored_paths(_entry_scores(logits, grid), grid, level)
    margin = math.exp(scored[1][0] - scored[0][0]) if len(scored) > 1 else 0.0
    return scored[0][1], margin


def _entry_scores(logits: Mapping[str, Tensor], grid: Grid) -> dict[Place, float]:
    """Log-probabilities of entering a level at each of its cells.

    Where a cell has two predecessors, that is beta_0 (footnote 2). The first cell of a level has one predecessor and no
    beta. A branch comes from there if no other cell of the level reads the finer one: the product of all their beta_1.
    So every path that the latency model prices can be selected.
    """
    scores: dict[Place, float] = {}
    for level in grid.levels:
        if not level:
            continue
        rows = grid.beta_rows(level)
        betas = F.log_softmax(logits[f"beta_{grid.scales[level]}"].double(), -1).tolist() if rows else []
        scores[level, level] = sum(beta[1] for beta in betas)
        scores |= {(level, grid.layers - rows + row): beta[0] for row, beta in enumerate(betas)}
    return scores


def scored_paths(scores: Mapping[Place, float], grid: Grid, level: int) -> list[tuple[float, tuple[int, ...]]]:
    """All paths to ``level`` with the sum of their entries' scores, the best first, the earlier of equals."""
    return sorted(
        ((sum(scores[i + 1, layer] for i, layer in enumerate(path)), path) for path in branch_paths(grid, level)),
        key=lambda pair: (-pair[0], pair[1]),
    )


def on_host(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tables of logits on the CPU; those of a device are copied together, so that the host waits for it once."""
    tables = list(logits.values())
    if not any(table.is_cuda for table in tables):
        return dict(logits)
    flat = torch.cat([table.detach().flatten() for table in tables]).cpu()
    parts = flat.split_with_sizes([table.numel() for table in tables])
    return {name: part.view_as(table) for (name, table), part in zip(logits.items(), parts, strict=True)}


class Likelihoods:
    """The logits of one architecture as float64 (log-)probabilities.

    ``entries``: log(beta_0) by cell. ``paths``: by final scale, all paths with their score, the best first.
    ``operators``: probabilities by cell. ``ratios``: log-probabilities by connection; if ratios were not searched, the
    widest has probability 1.
    """

    def __init__(self, logits: Mapping[str, Tensor], plan: NetworkPlan) -> None:
        self.plan, grid = plan, plan.grid
        logits = on_host(logits)
        self.entries = _entry_scores(logits, grid)
        self.paths = {scale: scored_paths(self.entries, grid, level) for level, scale in enumerate(grid.scales)}
        self.operators: dict[Place, list[float]] = {}
        self.ratios: dict[Place, list[float]] = {}
        widest_only = [-math.inf] * len(plan.ratios)
        widest_only[plan.ratios.index(max(plan.ratios))] = 0.0
        for level, scale in enumerate(grid.scales):
            operators = F.softmax(logits[f"alpha_{scale}"].double(), -1).tolist()
            searched = logits.get(f"gamma_{scale}")
            ratios = None if searched is None else F.log_softmax(searched.double(), -1).tolist()
            for layer in range(level, grid.layers):
                self.operators[level, layer] = operators[grid.alpha_row(level, layer)]
                if layer:
                    self.ratios[level, layer] = widest_only if ratios is None else ratios[grid.gamma_row(level, layer)]

    def likeliest(self, branches: Sequence[int]) -> Selection:
        """The selection of maximum likelihood: every choice is the argmax."""
        names, ratios = self.plan.operators, self.plan.ratios
        return Selection(
            entered={scale: self.paths[scale][0][1] for scale in branches},
            operators={place: names[row.index(max(row))] for place, row in self.operators.items()},
            ratios={place: ratios[row.index(max(row))] for place, row in self.ratios.items()},
        )

    def loss(self, selection: Selection) -> float:
        """The loss in log-probability of ``selection`` relative to the most likely one; at least 0.

        Summed over the paths of its branches and over all cells and connections on them, each counted once.
        """
        cells, connections, lost = set(), set(), 0.0
        for scale, entered in selection.entered.items():
            scores = self.paths[scale]
            lost += scores[0][0] - next(score for score, layers in scores if layers == entered)
            path = levels_of(entered, self.plan.grid)
            cells |= {(level, layer) for layer, level in enumerate(path)}
            connections |= {(level, layer) for layer, level in enumerate(path) if layer}
        for place in sorted(cells):
            row = self.operators[place]
            lost += _log(max(row)) - _log(row[self.plan.operators.index(selection.operators[place])])
        for place in sorted(connections):
            row = self.ratios[place]
            lost += max(row) - row[self.plan.ratios.index(selection.ratios[place])]
        return lost


def _log(probability: float) -> float:
    return math.log(max(probability, 1e-300))


def assemble(
    likelihoods: Likelihoods, selection: Selection, provenance: Mapping[str, object] = {}
) -> MultiBranchArchitecture:
    """The architecture of a selection; margins compare each choice with the best alternative."""
    found = [_build_branch(likelihoods, selection, scale) for scale in selection.entered]
    return MultiBranchArchitecture(
        end_ratio=likelihoods.plan.end_ratio,
        branches=_trim(found),
        provenance={str(k): str(v) for k, v in provenance.items()},
    )


@dataclass(frozen=True)
class _PathCell:
    """A cell on a branch's path before trimming: of its ``width`` channels, ``read`` are read by the next cell."""

    operator: str
    level: int
    layer: int
    stride: int
    scale: int
    in_channels: int
    width: int
    read: int
    margin: float


def _build_branch(
    likelihoods: Likelihoods, selection: Selection, scale: int
) -> tuple[int, float, int, list[_PathCell]]:
    plan = likelihoods.plan
    grid = plan.grid
    path = levels_of(selection.entered[scale], grid)
    cells: list[_PathCell] = []
    channels = 8 * plan.end_ratio
    for layer, level in enumerate(path):
        target = path[layer + 1] if layer < grid.last else level
        operator = selection.operators[level, layer]
        ratio = selection.ratios[target, layer + 1] if layer < grid.last else plan.end_ratio
        width = ratio * grid.scales[target]
        if operator == "skip" and target == level:
            channels = min(channels, width)
            cells[-1:] = [_narrow(cell, channels) for cell in cells[-1:]]
            continue
        weights = likelihoods.operators[level, layer]
        index = plan.operators.index(operator)
        cells.append(
            _PathCell(
                operator=operator,
                level=level,
                layer=layer,
                stride=1 if target == level else 2,
                scale=grid.scales[target],
                in_channels=channels,
                width=width,
                read=width,
                margin=weights[index] - max([*weights[:index], *weights[index + 1 :], 0.0]),
            )
        )
        channels = width
    return scale, _path_margin(likelihoods, selection, scale), channels, cells


def _path_margin(likelihoods: Likelihoods, selection: Selection, scale: int) -> float:
    """The product of beta_0 of the best other path, relative to that of the selected one."""
    scores = {layers: score for score, layers in likelihoods.paths[scale]}
    selected = scores.pop(selection.entered[scale])
    return math.exp(min(max(scores.values()) - selected, 700.0)) if scores else 0.0


def _narrow(cell: _PathCell, channels: int) -> _PathCell:
    return _PathCell(**{**cell.__dict__, "read": channels})


def _trim(found: Sequence[tuple[int, float, int, list[_PathCell]]]) -> tuple[Branch, ...]:
    """Remove output channels that no branch reads; cells of a shared prefix stay equal."""

    def prefix(cells: Sequence[_PathCell]) -> tuple[tuple[object, ...], ...]:
        return tuple((c.operator, c.scale, c.stride, c.in_channels, c.width) for c in cells)

    read: dict[tuple[tuple[object, ...], ...], int] = {}
    for _, _, _, cells in found:
        for index, cell in enumerate(cells):
            key = prefix(cells[: index + 1])
            read[key] = max(read.get(key, 0), cell.read)
    branches = []
    for scale, margin, channels, cells in found:
        trimmed = []
        for index, cell in enumerate(cells):
            # A skip of stride 2 concatenates two halves and is cheap: it stays whole, and its readers take a slice.
            made = cell.width if cell.operator == "skip" else read[prefix(cells[: index + 1])]
            trimmed.append(
                Cell(
                    operator=cell.operator,
                    scale=cell.scale // cell.stride,
                    stride=cell.stride,
                    in_channels=cell.in_channels,
                    channels=made,
                    layer=cell.layer,
                    width=cell.width,
                    margin=round(cell.margin, 6),
                )
            )
        branches.append(Branch(scale=scale, channels=channels, cells=tuple(trimmed), path_margin=round(margin, 6)))
    return tuple(branches)
