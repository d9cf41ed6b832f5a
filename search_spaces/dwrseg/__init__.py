"""DWRSeg's experiment on desired receptive fields (section 4.2) as a search space."""

from search_spaces.dwrseg.network import CompetingModule, CompetingNetwork
from search_spaces.dwrseg.space import DWRSegConfig, DWRSegNetworkConfig, DWRSegSpace

__all__ = ["CompetingModule", "CompetingNetwork", "DWRSegConfig", "DWRSegNetworkConfig", "DWRSegSpace"]
