"""The fixed properties of the networks of one architecture."""

from __future__ import annotations

from dataclasses import dataclass

from dnas.input_channels import RGB
from search_spaces.fasterseg.grid import Grid


@dataclass(frozen=True)
class NetworkPlan:
    """The choices of one architecture's search, and the task of its networks.

    ``ratios``: searched expansion ratios. ``branches``: number of branches. ``image_size``: (height, width) in pixels.
    ``end_ratio``: expansion ratio of stem and head. ``channels``: of the images.
    """

    grid: Grid
    operators: tuple[str, ...]
    ratios: tuple[int, ...]
    branches: int
    num_classes: int
    image_size: tuple[int, int]
    end_ratio: int
    channels: int = RGB

    def combinations(self) -> tuple[tuple[int, ...], ...]:
        """The combinations of final downsampling rates."""
        return self.grid.branch_combinations(self.branches)
