"""The space of networks like ESeg."""

from __future__ import annotations

from typing import Annotated

from torch import nn

from dnas.config import Field, config
from dnas.errors import UserError
from search_spaces.choices import ChoiceConfig, ChoiceSpace
from search_spaces.eseg.encoder import ChoiceEncoder
from search_spaces.eseg.network import ESegSupernet

_Count = Annotated[int, Field(ge=1, le=4096)]
_Widths = Annotated[tuple[_Count, ...], Field(min_length=1)]


@config
class ESegNetworkConfig:
    """The network; the defaults are around ESeg-Lite-S and -M (Table 3).

    stem: channels of the stem. widths: options of the channels of P2 to P5. depths: the largest number of blocks at P2
        to P5; 1 to that many are chosen. expansions: options of the expansion of every block, times the widest width.
    finest: the finest level of the pyramid. coarsest: the levels that may be its coarsest. repeats: the largest number
        of BiFPN layers. pyramid_widths: options of the pyramid's channels.
    """

    stem: _Count = 16
    widths: tuple[_Widths, _Widths, _Widths, _Widths] = ((8, 16, 24), (16, 24, 40), (48, 64, 112), (80, 128, 192))
    depths: tuple[_Count, _Count, _Count, _Count] = (2, 3, 5, 4)
    expansions: _Widths = (2, 4, 6)
    finest: Annotated[int, Field(ge=2, le=4)] = 3
    coarsest: Annotated[tuple[Annotated[int, Field(ge=5, le=9)], ...], Field(min_length=1)] = (5, 7, 9)
    repeats: Annotated[int, Field(ge=1, le=8)] = 3
    pyramid_widths: _Widths = (48, 64, 96)


@config
class ESegConfig(ChoiceConfig):
    """A preset of this space."""

    network: ESegNetworkConfig = Field(default_factory=ESegNetworkConfig)


class ESegSpace(ChoiceSpace[ESegConfig]):
    """Levels, links, repetitions, widths and depth of networks like ESeg."""

    settings_type = ESegConfig

    def network(self) -> nn.Module:
        """The network with choices."""
        options = self.settings.network
        if list(options.coarsest) != sorted(set(options.coarsest)):
            raise UserError(f"network.coarsest: given {list(options.coarsest)}, expected distinct ascending levels")
        encoder = ChoiceEncoder(options.stem, options.widths, options.depths, options.expansions)
        return ESegSupernet(
            self.num_classes, encoder, options.pyramid_widths, options.finest, options.coarsest, options.repeats
        )
