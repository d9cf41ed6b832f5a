"""What the multi-resolution networks of one architecture have in common."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.fasterseg.grid import Grid


@dataclass(frozen=True)
class NetworkPlan:
    """What searched logits are over, and what derived networks are for.

    ``ratios``: the searched expansion ratios. ``branches``: their number. ``image_size``: (height, width) in pixels.
    ``end_ratio``: the expansion ratio of stem and head.
    """

    grid: Grid
    operators: tuple[str, ...]
    ratios: tuple[int, ...]
    branches: int
    num_classes: int
    image_size: tuple[int, int]
    end_ratio: int

    def combinations(self) -> tuple[tuple[int, ...], ...]:
        """The choices of final downsample rates."""
        return self.grid.branch_combinations(self.branches)
