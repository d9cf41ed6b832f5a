"""Supernets: mixed operators, architecture parameters, sampling."""

from dnas.supernet.architecture import ArchitectureParameters, Sample, mean_entropy
from dnas.supernet.cell import MixedOperator, weighted_sum
from dnas.supernet.ends import SuperEnds, SuperFuse, combination_name
from dnas.supernet.grid import Grid
from dnas.supernet.multi_resolution import MultiResolutionSupernet
from dnas.supernet.paths import downsampling, finer_probabilities, meetings, visits

__all__ = [
    "ArchitectureParameters",
    "Grid",
    "MixedOperator",
    "MultiResolutionSupernet",
    "Sample",
    "SuperEnds",
    "SuperFuse",
    "combination_name",
    "downsampling",
    "finer_probabilities",
    "mean_entropy",
    "meetings",
    "visits",
    "weighted_sum",
]
