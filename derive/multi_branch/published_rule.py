"""The decoder of FasterSeg's published code, which produced Table 7 and differs from the rule of the paper.

It always decodes one branch per final scale, in the order 8, 16, 32, because decoding a branch changes alpha for the
next ones. L is the number of layers; layers are counted from 0.

*Downsampling layers.* The path to scale 8 has no choice. The path to 16 takes the largest beta_0 of scale 16, except
those of the first and last row, and enters scale 16 one layer before the layer of this beta_0. The path to 32 maximises
the product of both beta_0 and enters both scales at the same layers as the paper; the first row of scale 16 and the
last row of scale 32 are excluded, and there are at least three layers between the two entries. The softmax of beta is
applied again for every branch: once for the first, three times for the third.

*Removed skips.* Operators are the argmax of alpha, with these exceptions:

1. A skip of stride 1 is a candidate for removal. A skip of stride 2 is replaced by the runner-up operator.
2. The cells between one downsampling cell and the next (or the end of the branch) must not all be skips: if they are,
   the skip with the lowest probability (ties: the later one) is replaced by the runner-up. It still counts as a
   candidate in the next rule.
3. A branch of level j (0, 1, 2 for final scales 8, 16, 32) keeps at least round(L / 3) + 2 j cells, so at most the
   remaining number of cells is removed: the candidates with the highest probability of skip. All other skips are
   replaced by the runner-up.

A replaced skip is excluded for all branches decoded later, because the code edits alpha in place. Removing a cell also
removes its width: the cell before keeps its own. The last remaining cell has the head's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from derive.multi_branch.architecture import Branch, Cell, MultiBranchArchitecture
from dnas.errors import UserError
from dnas.latency.spec import OperatorSpec
from search_spaces.fasterseg import Grid, NetworkPlan

MIN_LAYERS = 8

_ExcludedSkips = frozenset[tuple[int, int]]


def decode_as_published(
    logits: Mapping[str, Tensor], plan: NetworkPlan, branches: Sequence[int], provenance: Mapping[str, object] = {}
) -> MultiBranchArchitecture:
    """The discrete architecture that the published code derives from ``logits`` for the given final scales.

    The arguments are those of :func:`derive.multi_branch.decode`. Without gamma, i.e. for a teacher, every ratio is the
    widest and no cell is a skip. Raises :class:`UserError` for a grid that the published code cannot decode.
    """
    grid = plan.grid
    if grid.layers < MIN_LAYERS or len(grid.scales) != 3:
        raise UserError(
            f"rule published-code: given {grid.layers} layers at scales {', '.join(map(str, grid.scales))}, expected "
            f"at least {MIN_LAYERS} layers at 8, 16, 32; use the rule paper"
        )
    searched_ratios = f"gamma_{grid.scales[0]}" in logits
    excluded: _ExcludedSkips = frozenset() if searched_ratios else frozenset(grid.cells())
    decoded = {}
    for scale in grid.scales:
        decoded[scale], excluded = _decode_branch(logits, plan, scale, excluded)
    return MultiBranchArchitecture(
        end_ratio=plan.end_ratio,
        branches=tuple(decoded[scale] for scale in branches),
        provenance={str(key): str(value) for key, value in provenance.items()},
    )


def priced_as_published(spec: OperatorSpec) -> OperatorSpec:
    """The signature that the published code looks up for an operator: for zoomed conv x2, that of conv x2."""
    if spec.operator != "zoomed_conv_x2":
        return spec
    return OperatorSpec("conv_x2", spec.inputs, spec.out_channels, spec.stride, spec.extras)


def published_path(logits: Mapping[str, Tensor], grid: Grid, level: int) -> tuple[tuple[int, ...], float]:
    """The level at every layer of the branch that ends at ``level``, and the runner-up's score relative to the best.

    The score is the product of beta_0 after repeated softmaxes, one for each branch decoded so far.
    """
    entered = _entries(logits, grid, level)
    scores = sorted(entered.values(), reverse=True)
    best = max(entered, key=lambda layers: entered[layers])  # ties: the first
    margin = scores[1] / scores[0] if len(scores) > 1 else 0.0
    return tuple(sum(layer >= at for at in best) for layer in range(grid.layers)), margin


def _entries(logits: Mapping[str, Tensor], grid: Grid, level: int) -> dict[tuple[int, ...], float]:
    """The possible downsampling layers of a path to ``level`` with their scores, in the published code's order."""
    if level == 0:
        return {(): 1.0}
    finer = {}
    for lower in (1, 2):
        beta = logits[f"beta_{grid.scales[lower]}"]
        for _ in range(level + 1):
            beta = F.softmax(beta, dim=-1)
        finer[lower] = beta[:, 0].tolist()
    if level == 1:
        return {(row + 1,): finer[1][row] for row in range(1, grid.beta_rows(1) - 1)}
    return {
        (first + 2, second + 3): finer[1][first] * finer[2][second]
        for second in range(grid.beta_rows(2) - 1)
        for first in range(1, second - 1)
    }


@dataclass(frozen=True)
class _Alpha:
    """Operator probabilities of every cell, and the cells at which the skip is excluded."""

    probabilities: Mapping[tuple[int, int], Tensor]
    operators: tuple[str, ...]
    excluded: _ExcludedSkips

    def without_skip(self, cell: tuple[int, int]) -> _Alpha:
        return _Alpha(self.probabilities, self.operators, self.excluded | {cell})

    def skip(self, cell: tuple[int, int]) -> float:
        """The probability of the skip, whether excluded or not."""
        return float(self.probabilities[cell][self.operators.index("skip")])

    def best(self, cell: tuple[int, int]) -> tuple[str, float]:
        """The most likely operator that is not excluded, and its probability minus that of the runner-up."""
        allowed = self.probabilities[cell].clone()
        if cell in self.excluded and "skip" in self.operators:
            allowed[self.operators.index("skip")] = -1.0
        best = int(allowed.argmax())
        others = torch.cat([allowed[:best], allowed[best + 1 :], allowed.new_zeros(1)])
        return self.operators[best], float(allowed[best] - others.max())


def _decode_branch(
    logits: Mapping[str, Tensor], plan: NetworkPlan, scale: int, excluded: _ExcludedSkips
) -> tuple[Branch, _ExcludedSkips]:
    grid = plan.grid
    path, margin = published_path(logits, grid, grid.level_of(scale))
    cells = [(level, layer) for layer, level in enumerate(path)]
    alpha = _Alpha(
        {
            (level, layer): F.softmax(logits[f"alpha_{grid.scales[level]}"][grid.alpha_row(level, layer)], dim=-1)
            for level, layer in cells
        },
        plan.operators,
        excluded,
    )
    removed, alpha = _remove_skips(cells, alpha)
    kept = [cell for cell in cells if cell not in removed]
    made: list[Cell] = []
    channels = 8 * plan.end_ratio
    for level, layer in kept:
        is_last = (level, layer) == kept[-1]
        target = level if is_last else path[layer + 1]
        ratio = plan.end_ratio if is_last else _ratio(logits, plan, target, layer + 1)
        operator, operator_margin = alpha.best((level, layer))
        width = ratio * grid.scales[target]
        made.append(
            Cell(
                operator=operator,
                scale=grid.scales[level],
                stride=1 + target - level,
                in_channels=channels,
                channels=width,
                layer=layer,
                width=width,
                margin=round(operator_margin, 6),
            )
        )
        channels = width
    branch = Branch(scale=scale, channels=channels, cells=tuple(made), path_margin=round(margin, 6))
    return branch, alpha.excluded


def _remove_skips(cells: Sequence[tuple[int, int]], alpha: _Alpha) -> tuple[set[tuple[int, int]], _Alpha]:
    """The cells of a path that are removed, and alpha with all other skips on the path excluded."""
    following = [*cells[1:], cells[-1]]
    goes_coarser = [here[0] < after[0] for here, after in zip(cells, following, strict=True)]
    candidates = [
        cell for cell, down in zip(cells, goes_coarser, strict=True) if not down and alpha.best(cell)[0] == "skip"
    ]
    downs = [index for index, down in enumerate(goes_coarser) if down]
    for start, end in pairwise([*downs, len(cells)]):
        section = cells[start + 1 : end]
        if section and all(cell in candidates for cell in section):
            alpha = alpha.without_skip(min(reversed(section), key=alpha.skip))
    most = len(cells) - (round(len(cells) / 3) + 2 * cells[-1][0])
    removed = {cell for cell in sorted(candidates, key=alpha.skip, reverse=True)[:most] if cell not in alpha.excluded}
    for cell in cells:
        if cell not in removed and alpha.best(cell)[0] == "skip":
            alpha = alpha.without_skip(cell)
    return removed, alpha


def _ratio(logits: Mapping[str, Tensor], plan: NetworkPlan, level: int, layer: int) -> int:
    """The expansion ratio of the connection into a cell."""
    name = f"gamma_{plan.grid.scales[level]}"
    if name not in logits:
        return max(plan.ratios)
    return plan.ratios[int(logits[name][plan.grid.gamma_row(level, layer)].argmax())]
