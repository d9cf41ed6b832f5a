"""The joint space: FasterSeg's grid with RegSeg's dilated blocks among its operators."""

from search_spaces.fasterseg_dilated.network import GridNetwork
from search_spaces.fasterseg_dilated.space import FasterSegDilatedSpace, GridConfig, GridNetworkConfig

__all__ = ["FasterSegDilatedSpace", "GridConfig", "GridNetwork", "GridNetworkConfig"]
