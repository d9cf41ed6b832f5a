"""The space of networks like DWRSeg."""

from __future__ import annotations

from typing import Annotated

from torch import nn

from dnas.config import Field, config
from dnas.errors import UserError
from search_spaces.choices import ChoiceConfig, ChoiceSpace
from search_spaces.dwrseg_modules.network import DWRSegSupernet

_Count = Annotated[int, Field(ge=1, le=4096)]
_Modules = Annotated[int, Field(ge=1, le=32)]
_Expansion = Annotated[int, Field(ge=1, le=16)]
_Widths = Annotated[tuple[_Count, ...], Field(min_length=1)]
_Rates = Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=5)]


@config
class ModulesNetworkConfig:
    """The network; the defaults are around DWRSeg-B and DWRSeg-L (Table 1).

    stem: channels of the stem. widths: options of the channels at 1/8, 1/16 and 1/32. modules: the largest number of
        modules there; 1 to that many are chosen. expansions: of the SIR modules to choose from, times the widest width.
    rates: of the branches of the DWR modules to choose from. decoder: channels of the decoder.
    """

    stem: Annotated[int, Field(ge=2, le=4096)] = 64
    widths: tuple[_Widths, _Widths, _Widths] = ((32, 48, 64), (64, 96, 128), (64, 96, 128))
    modules: tuple[_Modules, _Modules, _Modules] = (8, 8, 3)
    expansions: Annotated[tuple[_Expansion, ...], Field(min_length=1)] = (1, 3)
    rates: Annotated[tuple[_Rates, ...], Field(min_length=1)] = ((1, 3), (1, 3, 5))
    decoder: _Count = 128


@config
class DWRSegModulesConfig(ChoiceConfig):
    """A preset of this space."""

    network: ModulesNetworkConfig = Field(default_factory=ModulesNetworkConfig)


class DWRSegModulesSpace(ChoiceSpace[DWRSegModulesConfig]):
    """Which module stands in each place of a network like DWRSeg, how many there are, and how wide the stages are."""

    settings_type = DWRSegModulesConfig

    def network(self) -> nn.Module:
        """The network with choices."""
        options = self.settings.network
        for name, given in (("expansions", options.expansions), ("rates", options.rates)):
            if len(set(given)) < len(given):
                raise UserError(f"network.{name}: given {_listed(given)}, expected distinct ones")
        return DWRSegSupernet(
            self.num_classes,
            stem=options.stem,
            widths=options.widths,
            modules=options.modules,
            expansions=options.expansions,
            rates=options.rates,
            decoder=options.decoder,
        )


def _listed(values: tuple[object, ...]) -> list[object]:
    return [list(value) if isinstance(value, tuple) else value for value in values]
