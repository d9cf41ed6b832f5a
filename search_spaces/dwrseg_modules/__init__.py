"""Networks like DWRSeg as a search space: the module in each place, their number, the widths of the stages."""

from search_spaces.dwrseg_modules.network import DWRSegSupernet
from search_spaces.dwrseg_modules.space import DWRSegModulesConfig, DWRSegModulesSpace, ModulesNetworkConfig

__all__ = ["DWRSegModulesConfig", "DWRSegModulesSpace", "DWRSegSupernet", "ModulesNetworkConfig"]
