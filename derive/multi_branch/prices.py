"""Latencies of all operators that derived networks can contain, as arrays over the indices of widths."""

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
    """Latencies in ms of all operators that a derived network of ``plan`` can contain.

    Widths are indices into ``widths``: the searched ratios and that of stem and head, in ascending order. Entries that
    no network has are NaN. ``cells[level, stride]``: (operators, input width, output width). ``fusions[level]``:
    (input width,), the fusion at ``level`` that each branch to a coarser level needs. Skips of stride 1 are removed
    from networks and have no latency.
    """

    def __init__(self, plan: NetworkPlan, lookup: Lookup) -> None:
        self.plan = plan
        grid, size, end_ratio = plan.grid, plan.image_size, plan.end_ratio
        self.widths = tuple(sorted({*plan.ratios, end_ratio}))
        self.end = self.widths.index(end_ratio)
        self.searched = tuple(self.widths.index(ratio) for ratio in plan.ratios)
        count = len(self.widths)
        self.cells: dict[tuple[int, int], Floats] = {}
        self.fusions: dict[int, Floats] = {}
        for level, scale in enumerate(grid.scales):
            # Only cells of the first level can read the stem's width; only the output of non-skips can be narrowed.
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
                self.fusions[level] = np.full(count, np.nan)
                for a in ins:
                    self.fusions[level][a] = lookup(fuse_signature(self.widths[a] * scale, scale, end_ratio, size))
