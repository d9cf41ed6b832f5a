"""ESeg's insight as a search space: levels, links and repetitions of the pyramid, widths, depth of the encoder."""

from search_spaces.eseg.network import ESegSupernet
from search_spaces.eseg.space import ESegConfig, ESegNetworkConfig, ESegSpace

__all__ = ["ESegConfig", "ESegNetworkConfig", "ESegSpace", "ESegSupernet"]
