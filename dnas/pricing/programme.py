"""An integer programme over the choices of a network.

It finds the fastest and the slowest network, and the likeliest one within a range of latencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.optimize
import scipy.sparse
from numpy.typing import NDArray

from dnas.errors import UserError
from dnas.pricing.conditions import Cube
from dnas.pricing.expected_latency import Term

TIME_LIMIT_S = 60.0
_OUT_OF_TIME = 1
"""The status of scipy's solution when the time limit ended it."""


class Solution(dict[str, int]):
    """Options of a network, indices by the choices' names.

    proven: whether they are proven to be the best. Where the time limit ended the programme they are the best found.
    """

    def __init__(self, options: Mapping[str, int], proven: bool) -> None:
        super().__init__(options)
        self.proven = proven


@dataclass
class _Rows:
    """Sparse rows of constraints lower <= A z <= upper."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)

    def copy(self) -> _Rows:
        """The same rows, to which others can be added."""
        return _Rows(list(self.entries), list(self.lower), list(self.upper))

    def add(self, row: Mapping[int, float], lower: float, upper: float) -> None:
        """One constraint; ``row``: coefficients by variable."""
        number = len(self.lower)
        self.entries += [(number, column, value) for column, value in row.items()]
        self.lower.append(lower)
        self.upper.append(upper)


class LatencyProgramme:
    """One option of every choice (binary variables), and the products that the latency has.

    A term with several factors gets a variable for each combination of its options, and one for its condition. Their
    marginals are bounded by the options' variables, the tightest linear description of a product, so few branches are
    needed.
    """

    def __init__(self, terms: Sequence[Term], sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self._first: dict[str, int] = {}
        self._count = 0
        self._rows = _Rows()
        for name, size in self.sizes.items():
            self._first[name] = self._count
            self._rows.add({self._count + option: 1.0 for option in range(size)}, 1.0, 1.0)
            self._count += size
        self._binaries = self._count
        self._cost: dict[int, float] = {}
        self._constant = 0.0
        self._conditions: dict[tuple[Cube, ...], int] = {}
        self._cubes: dict[Cube, int] = {}
        for term in terms:
            self._add(term)

    def _add(self, term: Term) -> None:
        if term.always and not term.variables:
            self._constant += float(term.prices)
            return
        if term.always and len(term.variables) == 1:
            for option, price in enumerate(term.prices):
                self._charge(self._first[term.variables[0]] + option, float(price))
            return
        condition = None if term.always else self._condition(term.cubes)
        if condition is not None and not term.variables:
            self._charge(condition, float(term.prices))
            return
        numbers = self._new(term.prices.size).reshape(term.prices.shape)
        for index, price in zip(numbers.flat, term.prices.flat, strict=True):
            self._charge(int(index), float(price))
        for axis, name in enumerate(term.variables):
            for option, part in enumerate(np.moveaxis(numbers, axis, 0)):
                row = {int(number): 1.0 for number in np.asarray(part).flat}
                row[self._first[name] + option] = -1.0
                self._rows.add(row, 0.0 if condition is None else -np.inf, 0.0)
        if condition is not None:  # all products of the term add up to its condition
            self._rows.add({condition: -1.0, **{int(number): 1.0 for number in numbers.flat}}, 0.0, 0.0)

    def _condition(self, cubes: tuple[Cube, ...]) -> int:
        """The variable that is 1 where one of the disjoint cubes holds, else 0."""
        if cubes not in self._conditions:
            (number,) = self._new(1)
            row = {int(number): -1.0}
            for cube in cubes:
                row[self._cube(cube)] = 1.0
            self._rows.add(row, 0.0, 0.0)
            self._conditions[cubes] = int(number)
        return self._conditions[cubes]

    def _cube(self, cube: Cube) -> int:
        """The variable that is 1 where a cube holds, else 0."""
        if cube not in self._cubes:
            (number,) = self._new(1)
            everything = {int(number): -1.0}
            for name, allowed in cube:
                members = {self._first[name] + option: 1.0 for option in allowed}
                everything |= members
                self._rows.add({int(number): -1.0, **members}, 0.0, np.inf)
            self._rows.add(everything, -np.inf, len(cube) - 1.0)
            self._cubes[cube] = int(number)
        return self._cubes[cube]

    def _new(self, count: int) -> NDArray[np.int64]:
        """The numbers of new variables."""
        self._count += count
        return np.arange(self._count - count, self._count)

    def _charge(self, variable: int, price: float) -> None:
        self._cost[variable] = self._cost.get(variable, 0.0) + price

    def fastest(self) -> Solution:
        """The options of the fastest network, indices by name; raises :class:`UserError` if none is found in time."""
        return self._extreme(self._latency())

    def slowest(self) -> Solution:
        """The options of the slowest network; raises :class:`UserError` if none is found in time."""
        return self._extreme(-self._latency())

    def at_least(self, latency_ms: float) -> Solution | None:
        """The options of any network that takes ``latency_ms`` or more; None if none exists, or none is found in time.

        In a large space this takes a second where the slowest network takes more than the time limit.
        """
        rows = self._rows.copy()
        rows.add(self._cost, latency_ms - self._constant, np.inf)
        found, _ = self._solve(np.zeros(self._count), rows)
        return found

    def likeliest(
        self, scores: Mapping[str, Sequence[float]], latency_range: tuple[float, float], gap: float = 0.0
    ) -> Solution | None:
        """The options with the largest sum of ``scores`` whose latency is in the range, in ms; None if there are none.

        ``scores``: of every choice's options, such as log-probabilities. ``gap``: by what share of the largest sum it
        may be missed. If the time limit ends the solution before any options are found, the range becomes a penalty,
        with which all options are solutions; then the latency of those that are returned may be outside the range.
        """
        objective = np.zeros(self._count)
        for name, values in scores.items():
            for option, value in enumerate(values):
                objective[self._first[name] + option] = -value
        rows = self._rows.copy()
        low, high = latency_range[0] - self._constant, latency_range[1] - self._constant
        rows.add(self._cost, low, high)
        found, out_of_time = self._solve(objective, rows, gap)
        if found is not None or not out_of_time:
            return found
        spread = sum(max(values) - min(values) for values in scores.values())
        penalty = 1.0 + spread / (0.01 * max(latency_range))  # to miss by 1 % costs as much as all choices together
        soft = self._rows.copy()
        soft.add({**self._cost, self._count: 1.0}, low, np.inf)
        soft.add({**self._cost, self._count: -1.0}, -np.inf, high)
        found, _ = self._solve(np.append(objective, penalty), soft)
        return None if found is None else Solution(found, proven=False)

    def _latency(self) -> NDArray[np.float64]:
        cost = np.zeros(self._count)
        for variable, price in self._cost.items():
            cost[variable] = price
        return cost

    def _extreme(self, objective: NDArray[np.float64]) -> Solution:
        found, _ = self._solve(objective, self._rows)
        if found is None:
            raise UserError(
                f"no network found in {TIME_LIMIT_S:g} s among {len(self.sizes)} choices: search a smaller space"
            )
        return found

    def _solve(self, objective: NDArray[np.float64], rows: _Rows, gap: float = 0.0) -> tuple[Solution | None, bool]:
        """The best options found, and whether the time was over; a variable behind the others has no upper bound."""
        count = len(objective)
        numbers, columns, values = zip(*rows.entries, strict=True)
        matrix = scipy.sparse.csr_array((values, (numbers, columns)), shape=(len(rows.lower), count))
        integrality = np.zeros(count, dtype=np.int64)
        integrality[: self._binaries] = 1
        upper = np.ones(count)
        upper[self._count :] = np.inf
        found = scipy.optimize.milp(
            objective,
            constraints=scipy.optimize.LinearConstraint(matrix, np.array(rows.lower), np.array(rows.upper)),
            integrality=integrality,
            bounds=scipy.optimize.Bounds(np.zeros(count), upper),
            options={"time_limit": TIME_LIMIT_S, "mip_rel_gap": gap},
        )
        if found.x is None:
            return None, found.status == _OUT_OF_TIME
        options = {n: int(np.argmax(found.x[first : first + self.sizes[n]])) for n, first in self._first.items()}
        return Solution(options, proven=gap == 0.0 and found.status != _OUT_OF_TIME), False
