"""Supernets: mixed operators, architecture parameters, sampling."""

from dnas.supernet.architecture import ArchitectureParameters, Sample, mean_entropy
from dnas.supernet.cell import MixedOperator, RunCell, Way, run_cell, run_recomputed, weighted_sum
from dnas.supernet.cell_reference import run_cell_plainly
from dnas.supernet.ends import SuperEnds, SuperFuse, combination_name
from dnas.supernet.grid import Grid
from dnas.supernet.multi_resolution import MultiResolutionSupernet, run_alike
from dnas.supernet.paths import downsampling, finer_probabilities, meetings, visits

__all__ = [
    "ArchitectureParameters",
    "Grid",
    "MixedOperator",
    "MultiResolutionSupernet",
    "RunCell",
    "Sample",
    "SuperEnds",
    "SuperFuse",
    "Way",
    "combination_name",
    "downsampling",
    "finer_probabilities",
    "mean_entropy",
    "meetings",
    "run_alike",
    "run_cell",
    "run_cell_plainly",
    "run_recomputed",
    "visits",
    "weighted_sum",
]
