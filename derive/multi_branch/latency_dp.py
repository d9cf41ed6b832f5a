"""Exact joint optimisation of a derived network's likelihood and latency, by dynamic programming.

A derived network is a tree. Its branches share a prefix of cells from the stem to a branching point, where some of them
go coarser and the others keep their scale. Skips of stride 1 are removed from the network and narrow the output of the
operator before them, so the latency of an operator depends on the width that the next operator (or the head) reads. The
state of a cell therefore contains two widths: that of its input (flow), and that finally read from the last operator
before it (read). At a branching point, the last shared operator makes the largest width that any branch reads.

The paths are those that decoding can produce. Because decoding maximises the product of beta_0, the branch to 1/32
never leaves the first level later than the branch to 1/16; if it leaves earlier, it has left the second level by the
layer at which the other branch enters it. So branches share no cell after their branching point. (Cells of different
layers may become identical when skips are removed; the network then contains them once and is slightly faster than
computed here.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from derive.multi_branch.decode import Likelihoods
from derive.multi_branch.dp_states import BranchGroup, Choice, Decisions, State
from derive.multi_branch.prices import Floats, NetworkPrices
from search_spaces.fasterseg.selection import Selection


class LatencyLikelihoodDP:
    """Minimises ``loss_weight`` times the loss in log-probability plus ``latency_weight`` times the latency in ms.

    A negative ``latency_weight`` maximises the latency. Without ``likelihoods`` only the latency counts.
    """

    def __init__(
        self, prices: NetworkPrices, likelihoods: Likelihoods | None, *, loss_weight: float, latency_weight: float
    ) -> None:
        self.prices, self.grid = prices, prices.plan.grid
        self._operators, self._count = prices.plan.operators, len(prices.widths)
        self._skip = self._operators.index("skip") if "skip" in self._operators else None
        self._cells = {key: _weighted(table, latency_weight) for key, table in prices.cells.items()}
        self._fusions = {key: _weighted(table, latency_weight) for key, table in prices.fusions.items()}
        self._alpha = {place: np.zeros(len(self._operators)) for place in self.grid.cells()}
        self._gamma = {place: np.full(self._count, np.inf) for place in self.grid.cells()}
        self._beta = {(level, layer): 0.0 for level, layer in self.grid.cells() if level}
        for place, row in self._gamma.items():
            row[list(prices.searched)] = 0.0
            if likelihoods is not None and place[1]:
                logs = np.array(likelihoods.ratios[place])
                row[list(prices.searched)] = _weighted_loss(logs, loss_weight)
        if likelihoods is not None:
            for place, probabilities in likelihoods.operators.items():
                self._alpha[place] = _weighted_loss(np.log(np.maximum(probabilities, 1e-300)), loss_weight)
            for place, score in likelihoods.entries.items():
                self._beta[place] = -loss_weight * score
        self._table_cache: dict[BranchGroup, list[list[Floats]]] = {}

    def selection(self, branches: Sequence[int]) -> Selection:
        """The optimal selection for branches that end at the scales ``branches``."""
        group = BranchGroup(tuple(self.grid.level_of(scale) for scale in branches))
        values = self._value_tables(group)[0][0][self.prices.end]
        decisions = Decisions({level: [] for level in group.ends})
        # The width of the stem is fixed, so any width may be read from it at no cost.
        self._backtrack(State(group, 0, 0, self.prices.end, int(values.argmin())), decisions)
        names, widths = self._operators, self.prices.widths
        return Selection(
            entered={self.grid.scales[level]: tuple(layers) for level, layers in decisions.entered.items()},
            operators={place: names[number] for place, number in decisions.operators.items()},
            ratios={place: widths[number] for place, number in decisions.widths.items()},
        )

    def _value_tables(self, group: BranchGroup) -> list[list[Floats]]:
        """Value tables (flow, read) by layer and level: the minimum cost from that cell to the heads."""
        if group not in self._table_cache:
            count, grid = self._count, self.grid
            terminal = np.full((count, count), np.inf)
            if len(group.ends) == 1:
                np.fill_diagonal(terminal, 0.0)
            infeasible = np.full((count, count), np.inf)
            values = [[terminal if (level,) == group.ends else infeasible for level in grid.levels]]
            for layer in range(grid.last, -1, -1):
                after = values[-1]
                values.append(
                    [
                        self._cell_value(group, level, layer, after) if layer >= level else infeasible
                        for level in grid.levels
                    ]
                )
            self._table_cache[group] = values[::-1]
        return self._table_cache[group]

    def _cell_value(self, group: BranchGroup, level: int, layer: int, after: list[Floats]) -> Floats:
        """The value table (flow, read) of a cell, from the tables ``after`` of the next layer."""
        best = np.full((self._count, self._count), np.inf)
        diagonal = np.full(self._count, np.inf)
        alpha = self._alpha[level, layer]
        for target in self._common_levels(group, level, layer):
            kept = self._operator_cost(group, level, layer, target, after[target]).min(axis=(2, 3))
            diagonal = np.minimum(diagonal, (alpha[:, None] + kept).min(axis=0))
        if self._skip is not None and group.may_keep(level):
            best = alpha[self._skip] + self._skip_cost(level, layer, after[level]).min(axis=1)
        for one, other in self._splits(group, level, layer):
            diagonal = np.minimum(
                diagonal, (alpha[:, None] + self._branching_cost(one, other, level, layer)).min(axis=0)
            )
        np.fill_diagonal(best, np.minimum(np.diagonal(best), diagonal))
        return best

    def _common_levels(self, group: BranchGroup, level: int, layer: int) -> Iterator[int]:
        """The levels of the next layer that all branches of a group can enter together."""
        if group.may_keep(level):
            yield level
        if layer < self.grid.last and level + 1 < len(self.grid.scales) and group.may_go(level + 1, layer + 1):
            yield level + 1

    def _splits(self, group: BranchGroup, level: int, layer: int) -> Iterator[tuple[BranchGroup, BranchGroup]]:
        """The possible splits of a group: the branches that stay at ``level``, and those that go coarser."""
        if layer == self.grid.last or len(group.ends) < 2:
            return
        if level in group.ends:
            others = group.subset(tuple(end for end in group.ends if end != level))
            if others.may_go(level + 1, layer + 1):
                yield group.subset((level,)), others
        if level == 0 and {1, 2} <= set(group.ends):
            rest = tuple(end for end in group.ends if end != 2)
            for level1_entry in range(layer + 2, self.grid.layers):
                yield group.subset(rest, level1_entry=level1_entry), group.subset((2,), level2_deadline=level1_entry)

    def _width_cost(self, target: int, layer: int) -> Floats:
        """(width,) cost of each width of the connection into a cell of ``layer``; the head allows only one width."""
        if layer < self.grid.layers:
            return self._gamma[target, layer]
        row = np.full(self._count, np.inf)
        row[self.prices.end] = 0.0
        return row

    def _operator_cost(self, group: BranchGroup, level: int, layer: int, target: int, after: Floats) -> Floats:
        """(operator, flow, width, read): cost of an operator that stays in the network plus that of the cells after."""
        cells = self._cells[level, 1 + target - level]
        made = np.repeat(cells[:, :, None, :], self._count, axis=2)
        if self._skip is not None:
            made[self._skip] = np.inf if target == level else cells[self._skip][:, :, None]
        total = made + (self._width_cost(target, layer + 1)[:, None] + after)
        if target > level:
            branches = len(group.ends)
            total = total + branches * (self._fusions[level][:, None, None] + self._beta[target, layer + 1])
        return total

    def _skip_cost(self, level: int, layer: int, after: Floats) -> Floats:
        """(flow, width, read): cost of the cells after a skip of stride 1, which itself costs nothing."""
        widths = np.arange(self._count)
        narrowed = np.minimum(widths[:, None], widths[None, :])
        total: Floats = self._width_cost(level, layer + 1)[None, :, None] + after[narrowed]
        return total

    def _branching_cost(self, one: BranchGroup, other: BranchGroup, level: int, layer: int) -> Floats:
        """(operator, flow): cost of a branching point, at which ``other`` goes coarser, and of the cells after."""
        stays = self._operator_cost(one, level, layer, level, self._value_tables(one)[layer + 1][level])
        total: Floats = stays.min(axis=(2, 3))
        if self._skip is not None:
            after = self._value_tables(one)[layer + 1][level]
            total[self._skip] = self._skip_cost(level, layer, after).min(axis=(1, 2))
        after = self._value_tables(other)[layer + 1][level + 1]
        total += self._operator_cost(other, level, layer, level + 1, after).min(axis=(2, 3))
        return total

    def _backtrack(self, state: State, decisions: Decisions) -> None:
        """Collect the optimal decisions from ``state`` to the head."""
        if state.layer == self.grid.layers:
            return
        group, level, layer, flow = state.group, state.level, state.layer, state.flow
        after = self._value_tables(group)[layer + 1]
        options: list[tuple[float, Choice]] = []
        if state.read == flow:
            targets = self._common_levels(group, level, layer)
            options += [self._best_operator(group, level, layer, target, flow) for target in targets]
            for split in self._splits(group, level, layer):
                costs = self._alpha[level, layer] + self._branching_cost(*split, level, layer)[:, flow]
                number = int(costs.argmin())
                options.append((float(costs[number]), Choice(number, split=split)))
        if self._skip is not None and group.may_keep(level):
            skipped = self._skip_cost(level, layer, after[level])[flow, :, state.read]
            width = int(skipped.argmin())
            cost = self._alpha[level, layer][self._skip] + skipped[width]
            next_state = State(group, level, layer + 1, min(flow, width), state.read)
            options.append((float(cost), Choice(self._skip, next_state, width)))
        choice = min(options, key=lambda option: option[0])[1]
        decisions.operators[level, layer] = choice.operator
        if choice.split is None:
            assert choice.next_state is not None
            self._apply(choice, level, decisions)
            return
        one, other = choice.split
        if choice.operator == self._skip:
            skips = self._skip_cost(level, layer, self._value_tables(one)[layer + 1][level])[flow]
            width, read = divmod(int(skips.argmin()), self._count)
            stays = Choice(choice.operator, State(one, level, layer + 1, min(flow, width), read), width)
        else:
            stays = self._best_operator(one, level, layer, level, flow, choice.operator)[1]
        self._apply(stays, level, decisions)
        self._apply(self._best_operator(other, level, layer, level + 1, flow, choice.operator)[1], level, decisions)

    def _best_operator(
        self, group: BranchGroup, level: int, layer: int, target: int, flow: int, operator: int | None = None
    ) -> tuple[float, Choice]:
        """The best choice of an operator that stays in the network, with its cost."""
        total = self._operator_cost(group, level, layer, target, self._value_tables(group)[layer + 1][target])[:, flow]
        total = total + self._alpha[level, layer][:, None, None]
        numbers = range(len(self._operators)) if operator is None else (operator,)
        number = min(numbers, key=lambda index: float(total[index].min()))
        width, read = divmod(int(total[number].argmin()), self._count)
        return float(total[number].min()), Choice(number, State(group, target, layer + 1, width, read), width)

    def _apply(self, choice: Choice, level: int, decisions: Decisions) -> None:
        """Record a choice's connection and backtrack from its next state."""
        state = choice.next_state
        assert state is not None
        if state.layer < self.grid.layers:
            decisions.widths[state.level, state.layer] = choice.width
        if state.level > level:
            for end in state.group.ends:
                decisions.entered[end].append(state.layer)
        self._backtrack(state, decisions)


def _weighted(table: Floats, weight: float) -> Floats:
    """Prices times ``weight``; NaN, for operators that no network has, becomes infinity for either sign."""
    return np.where(np.isnan(table), np.inf, weight * np.nan_to_num(table))


def _weighted_loss(logs: Floats, weight: float) -> Floats:
    """The loss in log-probability relative to the best entry, times ``weight``; impossible entries stay infinite."""
    loss = logs.max() - logs
    return np.where(np.isfinite(loss), weight * np.where(np.isfinite(loss), loss, 0.0), np.inf)
