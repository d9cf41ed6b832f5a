"""The best network of a space by likelihood and latency together: exact, by dynamic programming.

A derived network is a tree: its branches share cells from the stem on until one of them goes coarser and the others
do not. Along a path, skips of stride 1 are left out and narrow what the operator before them makes: its price is known
only when the next operator (or the head) reads it. The value of a cell is therefore kept by two widths: the one
that flows into it, and the one that will in the end be read of the last operator before it. Where branches part, that
operator makes as much as any of them reads.

Paths are those that decoding can give: going coarser by the largest product of beta_0, the branch to 1/32 never leaves
the first level later than the one to 1/16, and if it leaves earlier, it has left the second level by the time at
which the other enters it. So no cell is used by two branches whose ways have parted. (Should the operators behind
the parting be equal by chance, the network is built with one of each, and is a little faster than counted here.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from derive.multi_branch.decode import Likelihoods
from derive.multi_branch.prices import Floats, NetworkPrices
from search_spaces.fasterseg.selection import Selection


@dataclass(frozen=True)
class _Group:
    """Branches, by the levels that they end at, that are in the same cell.

    ``enters``: the layer at which the branch to level 1 has to enter it; ``leaves``: the last layer at which the branch
    to level 2 may enter that; None where nothing is prescribed.
    """

    ends: tuple[int, ...]
    enters: int | None = None
    leaves: int | None = None

    def part(self, ends: tuple[int, ...], enters: int | None = None, leaves: int | None = None) -> _Group:
        """Those of the branches that end at ``ends``, with what is prescribed for them, before or now."""
        return _Group(
            ends,
            (enters or self.enters) if 1 in ends else None,
            (leaves or self.leaves) if 2 in ends else None,
        )

    def may_keep(self, level: int) -> bool:
        """Whether all of them may stay at ``level``."""
        return level <= min(self.ends)

    def may_go(self, level: int, layer: int) -> bool:
        """Whether all of them may enter ``level`` at ``layer``."""
        if level > min(self.ends):
            return False
        if level == 1 and 1 in self.ends and self.enters is not None and layer != self.enters:
            return False
        return not (level == 2 and self.leaves is not None and layer > self.leaves)


@dataclass(frozen=True)
class _State:
    """Where in the tree a group is, and the indices of the widths: flowing, and in the end read of what was before."""

    group: _Group
    level: int
    layer: int
    flow: int
    read: int


@dataclass
class _Found:
    """The choices made so far while the best tree is read off its values."""

    entered: dict[int, list[int]] = field(default_factory=dict)
    operators: dict[tuple[int, int], int] = field(default_factory=dict)
    widths: dict[tuple[int, int], int] = field(default_factory=dict)


class LatencyLikelihoodDP:
    """Minimises ``loss_weight`` times the lost log-probability plus ``latency_weight`` times the latency in ms."""

    def __init__(
        self, prices: NetworkPrices, likelihoods: Likelihoods | None, *, loss_weight: float, latency_weight: float
    ) -> None:
        self.prices, self.grid = prices, prices.plan.grid
        self._operators, self._count = prices.plan.operators, len(prices.widths)
        self._skip = self._operators.index("skip") if "skip" in self._operators else None
        self._cells = {key: _weighed(table, latency_weight) for key, table in prices.cells.items()}
        self._climbs = {key: _weighed(table, latency_weight) for key, table in prices.climbs.items()}
        self._alpha = {place: np.zeros(len(self._operators)) for place in self.grid.cells()}
        self._gamma = {place: np.full(self._count, np.inf) for place in self.grid.cells()}
        self._beta = {(level, layer): 0.0 for level, layer in self.grid.cells() if level}
        for place, row in self._gamma.items():
            row[list(prices.searched)] = 0.0
            if likelihoods is not None and place[1]:
                logs = np.array(likelihoods.ratios[place])
                row[list(prices.searched)] = _lost(logs, loss_weight)
        if likelihoods is not None:
            for place, probabilities in likelihoods.operators.items():
                self._alpha[place] = _lost(np.log(np.maximum(probabilities, 1e-300)), loss_weight)
            for place, score in likelihoods.entries.items():
                self._beta[place] = -loss_weight * score
        self._values: dict[_Group, list[list[Floats]]] = {}

    def selection(self, branches: Sequence[int]) -> Selection:
        """The best choice of everything for branches that end at the scales ``branches``."""
        group = _Group(tuple(self.grid.level_of(scale) for scale in branches))
        values = self._value(group)[0][0][self.prices.end]
        found = _Found({level: [] for level in group.ends})
        # The stem is read as it is: what the branches read of it in the end changes no price.
        self._trace(_State(group, 0, 0, self.prices.end, int(values.argmin())), found)
        names, widths = self._operators, self.prices.widths
        return Selection(
            entered={self.grid.scales[level]: tuple(layers) for level, layers in found.entered.items()},
            operators={place: names[number] for place, number in found.operators.items()},
            ratios={place: widths[number] for place, number in found.widths.items()},
        )

    def _value(self, group: _Group) -> list[list[Floats]]:
        """By layer and level, (flow, read): the best that can follow; behind the last layer stands the head."""
        if group not in self._values:
            count, grid = self._count, self.grid
            ended = np.full((count, count), np.inf)
            if len(group.ends) == 1:
                np.fill_diagonal(ended, 0.0)
            closed = np.full((count, count), np.inf)
            values = [[ended if (level,) == group.ends else closed for level in grid.levels]]
            for layer in range(grid.last, -1, -1):
                after = values[-1]
                values.append(
                    [self._best(group, level, layer, after) if layer >= level else closed for level in grid.levels]
                )
            self._values[group] = values[::-1]
        return self._values[group]

    def _best(self, group: _Group, level: int, layer: int, after: list[Floats]) -> Floats:
        best = np.full((self._count, self._count), np.inf)
        diagonal = np.full(self._count, np.inf)
        alpha = self._alpha[level, layer]
        for target in self._targets(group, level, layer):
            kept = self._kept(group, level, layer, target, after[target]).min(axis=(2, 3))
            diagonal = np.minimum(diagonal, (alpha[:, None] + kept).min(axis=0))
        if self._skip is not None and group.may_keep(level):
            best = alpha[self._skip] + self._skipped(level, layer, after[level]).min(axis=1)
        for one, other in self._partings(group, level, layer):
            diagonal = np.minimum(diagonal, (alpha[:, None] + self._parted(one, other, level, layer)).min(axis=0))
        np.fill_diagonal(best, np.minimum(np.diagonal(best), diagonal))
        return best

    def _targets(self, group: _Group, level: int, layer: int) -> Iterator[int]:
        """The levels at which all branches of a group can go on together."""
        if group.may_keep(level):
            yield level
        if layer < self.grid.last and level + 1 < len(self.grid.scales) and group.may_go(level + 1, layer + 1):
            yield level + 1

    def _partings(self, group: _Group, level: int, layer: int) -> Iterator[tuple[_Group, _Group]]:
        """The ways in which some branches stay at ``level`` while the others go coarser."""
        if layer == self.grid.last or len(group.ends) < 2:
            return
        if level in group.ends:
            others = group.part(tuple(end for end in group.ends if end != level))
            if others.may_go(level + 1, layer + 1):
                yield group.part((level,)), others
        if level == 0 and {1, 2} <= set(group.ends):
            rest = tuple(end for end in group.ends if end != 2)
            for enters in range(layer + 2, self.grid.layers):
                yield group.part(rest, enters=enters), group.part((2,), leaves=enters)

    def _connection(self, target: int, layer: int) -> Floats:
        """(width,) what the width of the connection into the cell of ``layer`` costs; into the head there is one."""
        if layer < self.grid.layers:
            return self._gamma[target, layer]
        row = np.full(self._count, np.inf)
        row[self.prices.end] = 0.0
        return row

    def _kept(self, group: _Group, level: int, layer: int, target: int, after: Floats) -> Floats:
        """(operator, flow, width, read): an operator that stays in the network, and the best that follows."""
        cells = self._cells[level, 1 + target - level]
        made = np.repeat(cells[:, :, None, :], self._count, axis=2)
        if self._skip is not None:
            made[self._skip] = np.inf if target == level else cells[self._skip][:, :, None]
        total = made + (self._connection(target, layer + 1)[:, None] + after)
        if target > level:
            branches = len(group.ends)
            total = total + branches * (self._climbs[level][:, None, None] + self._beta[target, layer + 1])
        return total

    def _skipped(self, level: int, layer: int, after: Floats) -> Floats:
        """(flow, width, read): a skip of stride 1, and the best that follows."""
        widths = np.arange(self._count)
        narrowed = np.minimum(widths[:, None], widths[None, :])
        total: Floats = self._connection(level, layer + 1)[None, :, None] + after[narrowed]
        return total

    def _parted(self, one: _Group, other: _Group, level: int, layer: int) -> Floats:
        """(operator, flow): the cell at which ``other`` goes coarser and ``one`` does not, and what follows."""
        stays = self._kept(one, level, layer, level, self._value(one)[layer + 1][level])
        total: Floats = stays.min(axis=(2, 3))
        if self._skip is not None:
            after = self._value(one)[layer + 1][level]
            total[self._skip] = self._skipped(level, layer, after).min(axis=(1, 2))
        after = self._value(other)[layer + 1][level + 1]
        total += self._kept(other, level, layer, level + 1, after).min(axis=(2, 3))
        return total

    def _trace(self, state: _State, found: _Found) -> None:
        """Read off the best choices from ``state`` on."""
        if state.layer == self.grid.layers:
            return
        group, level, layer, flow = state.group, state.level, state.layer, state.flow
        after = self._value(group)[layer + 1]
        options: list[tuple[float, _Choice]] = []
        if state.read == flow:
            targets = self._targets(group, level, layer)
            options += [self._best_kept(group, level, layer, target, flow) for target in targets]
            for parting in self._partings(group, level, layer):
                costs = self._alpha[level, layer] + self._parted(*parting, level, layer)[:, flow]
                number = int(costs.argmin())
                options.append((float(costs[number]), _Choice(number, parting=parting)))
        if self._skip is not None and group.may_keep(level):
            skipped = self._skipped(level, layer, after[level])[flow, :, state.read]
            width = int(skipped.argmin())
            cost = self._alpha[level, layer][self._skip] + skipped[width]
            follows = _State(group, level, layer + 1, min(flow, width), state.read)
            options.append((float(cost), _Choice(self._skip, follows, width)))
        choice = min(options, key=lambda option: option[0])[1]
        found.operators[level, layer] = choice.operator
        if choice.parting is None:
            assert choice.follows is not None
            self._follow(choice, level, found)
            return
        one, other = choice.parting
        if choice.operator == self._skip:
            skips = self._skipped(level, layer, self._value(one)[layer + 1][level])[flow]
            width, read = divmod(int(skips.argmin()), self._count)
            stays = _Choice(choice.operator, _State(one, level, layer + 1, min(flow, width), read), width)
        else:
            stays = self._best_kept(one, level, layer, level, flow, choice.operator)[1]
        self._follow(stays, level, found)
        self._follow(self._best_kept(other, level, layer, level + 1, flow, choice.operator)[1], level, found)

    def _best_kept(
        self, group: _Group, level: int, layer: int, target: int, flow: int, operator: int | None = None
    ) -> tuple[float, _Choice]:
        """The best way on with an operator that stays in the network: its cost and itself."""
        total = self._kept(group, level, layer, target, self._value(group)[layer + 1][target])[:, flow]
        total = total + self._alpha[level, layer][:, None, None]
        numbers = range(len(self._operators)) if operator is None else (operator,)
        number = min(numbers, key=lambda index: float(total[index].min()))
        width, read = divmod(int(total[number].argmin()), self._count)
        return float(total[number].min()), _Choice(number, _State(group, target, layer + 1, width, read), width)

    def _follow(self, choice: _Choice, level: int, found: _Found) -> None:
        """Note a choice's connection and go on behind it."""
        state = choice.follows
        assert state is not None
        if state.layer < self.grid.layers:
            found.widths[state.level, state.layer] = choice.width
        if state.level > level:
            for end in state.group.ends:
                found.entered[end].append(state.layer)
        self._trace(state, found)


@dataclass(frozen=True)
class _Choice:
    """What a cell is, and the state behind it; where branches part there, the two groups instead."""

    operator: int
    follows: _State | None = None
    width: int = 0
    parting: tuple[_Group, _Group] | None = None


def _weighed(table: Floats, weight: float) -> Floats:
    """Prices times their weight; what no network has costs infinitely much, whatever the sign."""
    return np.where(np.isnan(table), np.inf, weight * np.nan_to_num(table))


def _lost(logs: Floats, weight: float) -> Floats:
    """How much less likely than the best each is, times ``weight``; what is impossible stays so."""
    lost = logs.max() - logs
    return np.where(np.isfinite(lost), weight * np.where(np.isfinite(lost), lost, 0.0), np.inf)
