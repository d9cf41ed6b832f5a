"""RegSeg's search space: fractional dilation rates of a network's convolutions."""

from search_spaces.regseg.latency import DilationLatency
from search_spaces.regseg.problem import RateSearch
from search_spaces.regseg.space import RegSegConfig, RegSegSpace, SearchedNetwork

__all__ = ["DilationLatency", "RateSearch", "RegSegConfig", "RegSegSpace", "SearchedNetwork"]
