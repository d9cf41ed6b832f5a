"""What the parts of derived networks cost, by the index of a width, for optimisation over all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dnas.latency.spec import OperatorSpec
from search_spaces.fasterseg.plan import NetworkPlan
from search_spaces.fasterseg.signatures import cell_signature, fuse_signature

Floats = NDArray[np.float64]
Lookup = Callable[[OperatorSpec], float]


class NetworkPrices:
    """Prices in ms of all operators that a derived network of ``plan`` can have.

    Widths are indices into ``widths``, the searched ratios and that of stem and head in ascending order; what no
    network has is NaN. ``cells[level, stride]``: (operators, in, made); ``climbs[level]``: (in,), the step up that a
    branch takes for having left ``level``. Skips of stride 1 are left out of networks, so they have no price.
    """

    def __init__(self, plan: NetworkPlan, lookup: Lookup) -> None:
        self.plan = plan
        grid, size, end_ratio = plan.grid, plan.image_size, plan.end_ratio
        self.widths = tuple(sorted({*plan.ratios, end_ratio}))
        self.end = self.widths.index(end_ratio)
        self.searched = tuple(self.widths.index(ratio) for ratio in plan.ratios)
        count = len(self.widths)
        self.cells: dict[tuple[int, int], Floats] = {}
        self.climbs: dict[int, Floats] = {}
        for level, scale in enumerate(grid.scales):
            # Only at the first level does the stem's width flow; only operators other than skips are narrowed.
            ins = range(count) if level == 0 else self.searched
            is_last = level + 1 == len(grid.scales)
            for stride in (1,) if is_last else (1, 2):
                prices = np.full((len(plan.operators), count, count), np.nan)
                for number, operator in enumerate(plan.operators):
                    if operator == "skip" and stride == 1:
                        continue
                    for a in ins:
                        for b in self.searched if operator == "skip" else range(count):
                            spec = cell_signature(
                                operator, self.widths[a] * scale, self.widths[b] * scale * stride, scale, stride, size
                            )
                            prices[number, a, b] = lookup(spec)
                self.cells[level, stride] = prices
            if not is_last:
                self.climbs[level] = np.full(count, np.nan)
                for a in ins:
                    self.climbs[level][a] = lookup(fuse_signature(self.widths[a] * scale, scale, end_ratio, size))
