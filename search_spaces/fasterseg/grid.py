"""The grid of cells of a multi-resolution supernet, and the rows of its logit tables.

A cell has a *level* j (downsampling rate ``scales[j]``) and a layer l, counted from 0, with l >= j because each level
needs one more downsampling step. The *connection* into a cell has one searched width. Rows of the tables of level j:
alpha has a row per layer from j, beta per layer from j + 1 (the first cell of a level has only one predecessor), gamma
per layer from max(1, j) (the width of the stem, the input of layer 0, is not searched).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Grid:
    """A grid of ``layers`` layers and downsampling rates ``scales``: 8, 16, ..., each twice the one before."""

    layers: int
    scales: tuple[int, ...] = (8, 16, 32)

    def __post_init__(self) -> None:
        expected = tuple(8 * 2**j for j in range(len(self.scales)))
        if not self.scales or self.scales != expected:
            raise ValueError(f"scales {self.scales}: expected 8, each next one doubled, such as (8, 16, 32)")
        if self.layers < len(self.scales):
            raise ValueError(
                f"{self.layers} layers cannot reach {len(self.scales)} scales, use at least one layer each"
            )

    @property
    def levels(self) -> range:
        """The levels j."""
        return range(len(self.scales))

    @property
    def last(self) -> int:
        """Index of the last layer, whose cells are the inputs of the head."""
        return self.layers - 1

    def cells(self) -> Iterator[tuple[int, int]]:
        """All (level, layer), in the order of a forward pass."""
        return ((level, layer) for layer in range(self.layers) for level in self.levels if layer >= level)

    def alpha_rows(self, level: int) -> int:
        """Number of cells of a level."""
        return self.layers - level

    def beta_rows(self, level: int) -> int:
        """Number of cells of a level with two predecessors."""
        return self.layers - level - 1 if level else 0

    def gamma_rows(self, level: int) -> int:
        """Number of searched connections into a level."""
        return self.layers - max(1, level)

    def alpha_row(self, level: int, layer: int) -> int:
        """Row of cell (level, layer) in alpha."""
        return layer - level

    def beta_row(self, level: int, layer: int) -> int:
        """Row of cell (level, layer) in beta."""
        return layer - level - 1

    def gamma_row(self, level: int, layer: int) -> int:
        """Row of the connection into cell (level, layer) in gamma."""
        return layer - max(1, level)

    def level_of(self, scale: int) -> int:
        """The level of a downsampling rate."""
        return self.scales.index(scale)

    def branch_combinations(self, branches: int) -> tuple[tuple[int, ...], ...]:
        """All combinations of ``branches`` final downsampling rates, such as ((8, 16), (8, 32), (16, 32))."""
        return tuple(combinations(self.scales, branches))
