"""The joint space of FasterSeg and RegSeg."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from torch import nn

from dnas.config import Field, config
from dnas.errors import UserError
from dnas.ops import floor_and_ceil
from search_spaces.choices import ChoiceConfig, ChoiceSpace
from search_spaces.fasterseg_dilated.network import GridNetwork

_Ratio = Annotated[int, Field(ge=1, le=64)]
_Operator = Literal["skip", "conv", "conv_x2", "zoomed_conv", "zoomed_conv_x2", "d_block"]
_RATE = ".rate"


@config
class GridNetworkConfig:
    """The grid; the defaults are FasterSeg's (section 4.2) with D blocks instead of the zoomed double convolution.

    layers, ratios, branches: L, chi and b. levels: number of scales from 1/8 on. end_ratio: expansion ratio of stem and
    head. upper: bound of all dilation rates. group_width: of the dilated convolutions.
    """

    layers: int = Field(default=16, ge=2, le=64)
    levels: int = Field(default=3, ge=2, le=3)
    operators: Annotated[tuple[_Operator, ...], Field(min_length=1)] = (
        "skip",
        "conv",
        "conv_x2",
        "zoomed_conv",
        "d_block",
    )
    ratios: Annotated[tuple[_Ratio, ...], Field(min_length=1)] = (4, 6, 8, 10, 12)
    branches: int = Field(default=2, ge=1, le=3)
    end_ratio: _Ratio = 8
    upper: float = Field(default=8.0, ge=1, le=64)
    group_width: _Ratio = 8


@config
class GridConfig(ChoiceConfig):
    """A preset of this space."""

    network: GridNetworkConfig = Field(default_factory=GridNetworkConfig)


class FasterSegDilatedSpace(ChoiceSpace[GridConfig]):
    """Operators, widths, paths, ends and dilation rates in one search."""

    settings_type = GridConfig

    def network(self) -> nn.Module:
        """The grid."""
        options = self.settings.network
        if options.branches > options.levels:
            raise UserError(f"network.branches: given {options.branches}, expected at most {options.levels}")
        wrong = [ratio for ratio in options.ratios if 8 * ratio % (2 * options.group_width)]
        if wrong and "d_block" in options.operators:
            raise UserError(
                f"network.group_width: {8 * wrong[0]} channels (ratio {wrong[0]}) cannot be divided into "
                f"two branches of groups of {options.group_width}"
            )
        return GridNetwork(
            self.num_classes,
            layers=options.layers,
            levels=options.levels,
            ratios=options.ratios,
            operators=options.operators,
            end_ratio=options.end_ratio,
            branches=options.branches,
            upper=options.upper,
            group_width=options.group_width,
        )

    def rounded(self, rates: Mapping[str, float]) -> Mapping[str, int]:
        """RegSeg's rule: the smaller rate of a block is rounded down, the larger one up."""
        rounded = floor_and_ceil({name.removesuffix(_RATE): rate for name, rate in rates.items()})
        return {name: rounded[name.removesuffix(_RATE)] for name in rates}
