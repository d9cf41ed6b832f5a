"""The space of DWRSeg's experiment."""

from __future__ import annotations

from typing import Annotated

from torch import nn

from dnas.config import Field, config
from dnas.errors import UserError
from search_spaces.choices import ChoiceConfig, ChoiceSpace
from search_spaces.dwrseg.network import CompetingNetwork

_Rate = Annotated[int, Field(ge=1, le=64)]
_Modules = Annotated[int, Field(ge=1, le=32)]


@config
class DWRSegNetworkConfig:
    """The network; the defaults are DWRSeg-L with the modules of section 4.2.

    modules: numbers of modules in the stages at 1/8, 1/16 and 1/32. rates: dilation rates of the competing branches.
    width: factor of all channels. by_module: a choice for every module instead of one for each stage.
    """

    modules: tuple[_Modules, _Modules, _Modules] = (8, 8, 2)
    rates: Annotated[tuple[_Rate, ...], Field(min_length=1, max_length=5)] = (1, 3, 5)
    width: float = Field(default=1.0, gt=0, le=16)
    by_module: bool = False


@config
class DWRSegConfig(ChoiceConfig):
    """A preset of this space."""

    network: DWRSegNetworkConfig = Field(default_factory=DWRSegNetworkConfig)


class DWRSegSpace(ChoiceSpace[DWRSegConfig]):
    """Which dilated branches each stage keeps."""

    settings_type = DWRSegConfig

    def network(self) -> nn.Module:
        """The network with competing branches."""
        network = self.settings.network
        if len(set(network.rates)) < len(network.rates):
            raise UserError(f"network.rates: given {list(network.rates)}, expected distinct rates")
        return CompetingNetwork(self.num_classes, network.modules, network.rates, network.width, network.by_module)
