"""The decoder of FasterSeg's published code, which departs from the paper: how Table 7 came out of the authors' logits.

It decodes one branch for each final scale, 8, then 16, then 32, whichever of them are wanted, because each changes what
the next one sees. With L layers, counted from 0:

*Where a branch goes coarser.* The path that ends at scale 8 has no choice. The one that ends at 16 goes by the largest
beta_0 of scale 16, the first and last layer that have one left out, and then enters scale 16 one layer before the
layer that this beta_0 belongs to. The one that ends at 32 maximises the product of both beta_0 and enters both scales
where the paper does; the first row of scale 16 and the last row of scale 32 are left out, and between the two entries
lie three layers or more. Beta is soft-maxed again for every branch: once for the first, three times for the third.

*Which skips are shrunk.* The rule asks for the argmax of alpha, and then:

1. A skip of stride 1 is a candidate for being shrunk. A skip of stride 2 is not kept either: it becomes the runner-up.
2. Between one downsampling cell and the next (or the end of the branch) not every cell may be a skip: where all are,
   the one with the least probability of skip (the later of equals) becomes its runner-up. It stays a candidate in the
   count of the next rule.
3. A branch of level j (0, 1, 2 for final scales 8, 16, 32) has to keep round(L / 3) + 2 j cells, so that at most the
   remaining number of candidates, those with the largest probability of skip, is shrunk. Every other skip becomes its
   runner-up.

A skip that became its runner-up is ruled out for the branches that are decoded later too: alpha is edited in place.
A shrunk cell takes its width with it: the cell before keeps its own. The last cell left writes the head's width.
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

FEWEST_LAYERS = 8

_SkipsRuledOut = frozenset[tuple[int, int]]


def decode_as_published(
    logits: Mapping[str, Tensor], plan: NetworkPlan, branches: Sequence[int], provenance: Mapping[str, object] = {}
) -> MultiBranchArchitecture:
    """The discrete architecture that the published code makes of ``logits``, for branches ending at the scales given.

    The arguments are those of :func:`derive.multi_branch.decode`. Without gamma, i.e. for a teacher, every ratio is the
    widest and no cell is a skip. Raises :class:`UserError` for a grid that the published code cannot decode.
    """
    grid = plan.grid
    if grid.layers < FEWEST_LAYERS or len(grid.scales) != 3:
        raise UserError(
            f"rule published-code: given {grid.layers} layers at scales {', '.join(map(str, grid.scales))}, expected "
            f"at least {FEWEST_LAYERS} layers at 8, 16, 32; use the rule paper"
        )
    searched_ratios = f"gamma_{grid.scales[0]}" in logits
    ruled_out: _SkipsRuledOut = frozenset() if searched_ratios else frozenset(grid.cells())
    decoded = {}
    for scale in grid.scales:
        decoded[scale], ruled_out = _decode_branch(logits, plan, scale, ruled_out)
    return MultiBranchArchitecture(
        end_ratio=plan.end_ratio,
        branches=tuple(decoded[scale] for scale in branches),
        provenance={str(key): str(value) for key, value in provenance.items()},
    )


def priced_as_published(spec: OperatorSpec) -> OperatorSpec:
    """The entry that the published code looks up for an operator: that of conv x2 for zoomed conv x2."""
    if spec.operator != "zoomed_conv_x2":
        return spec
    return OperatorSpec("conv_x2", spec.inputs, spec.out_channels, spec.stride, spec.extras)


def published_path(logits: Mapping[str, Tensor], grid: Grid, level: int) -> tuple[tuple[int, ...], float]:
    """The level at every layer of the branch that ends at ``level``, and the score of the runner-up over the best.

    The score is the product of beta_0, after as many softmaxes as the branches decoded so far have applied.
    """
    entered = _entries(logits, grid, level)
    scores = sorted(entered.values(), reverse=True)
    best = max(entered, key=lambda layers: entered[layers])  # the first of equals
    margin = scores[1] / scores[0] if len(scores) > 1 else 0.0
    return tuple(sum(layer >= at for at in best) for layer in range(grid.layers)), margin


def _entries(logits: Mapping[str, Tensor], grid: Grid, level: int) -> dict[tuple[int, ...], float]:
    """The layers at which levels 1 to ``level`` may be entered, with the score of each, in the order of the search."""
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
    """Probabilities of the operators of every cell, and the cells at which the skip has been ruled out."""

    probabilities: Mapping[tuple[int, int], Tensor]
    operators: tuple[str, ...]
    ruled_out: _SkipsRuledOut

    def without_skip(self, cell: tuple[int, int]) -> _Alpha:
        return _Alpha(self.probabilities, self.operators, self.ruled_out | {cell})

    def skip(self, cell: tuple[int, int]) -> float:
        """The probability of the skip as it was searched."""
        return float(self.probabilities[cell][self.operators.index("skip")])

    def best(self, cell: tuple[int, int]) -> tuple[str, float]:
        """The likeliest operator that is not ruled out, and its probability less that of the next."""
        allowed = self.probabilities[cell].clone()
        if cell in self.ruled_out and "skip" in self.operators:
            allowed[self.operators.index("skip")] = -1.0
        best = int(allowed.argmax())
        others = torch.cat([allowed[:best], allowed[best + 1 :], allowed.new_zeros(1)])
        return self.operators[best], float(allowed[best] - others.max())


def _decode_branch(
    logits: Mapping[str, Tensor], plan: NetworkPlan, scale: int, ruled_out: _SkipsRuledOut
) -> tuple[Branch, _SkipsRuledOut]:
    grid = plan.grid
    path, margin = published_path(logits, grid, grid.level_of(scale))
    cells = [(level, layer) for layer, level in enumerate(path)]
    alpha = _Alpha(
        {
            (level, layer): F.softmax(logits[f"alpha_{grid.scales[level]}"][grid.alpha_row(level, layer)], dim=-1)
            for level, layer in cells
        },
        plan.operators,
        ruled_out,
    )
    shrunk, alpha = _shrink(cells, alpha)
    kept = [cell for cell in cells if cell not in shrunk]
    made: list[Cell] = []
    channels = 8 * plan.end_ratio
    for level, layer in kept:
        is_last = (level, layer) == kept[-1]
        target = level if is_last else path[layer + 1]
        ratio = plan.end_ratio if is_last else _ratio(logits, plan, target, layer + 1)
        operator, lead = alpha.best((level, layer))
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
                margin=round(lead, 6),
            )
        )
        channels = width
    branch = Branch(scale=scale, channels=channels, cells=tuple(made), path_margin=round(margin, 6))
    return branch, alpha.ruled_out


def _shrink(cells: Sequence[tuple[int, int]], alpha: _Alpha) -> tuple[set[tuple[int, int]], _Alpha]:
    """The cells of a path that are left out, and alpha with every other skip on the path ruled out."""
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
    shrunk = {cell for cell in sorted(candidates, key=alpha.skip, reverse=True)[:most] if cell not in alpha.ruled_out}
    for cell in cells:
        if cell not in shrunk and alpha.best(cell)[0] == "skip":
            alpha = alpha.without_skip(cell)
    return shrunk, alpha


def _ratio(logits: Mapping[str, Tensor], plan: NetworkPlan, level: int, layer: int) -> int:
    """The ratio of the connection into a cell."""
    name = f"gamma_{plan.grid.scales[level]}"
    if name not in logits:
        return max(plan.ratios)
    return plan.ratios[int(logits[name][plan.grid.gamma_row(level, layer)].argmax())]
