"""Supernets: mixed operators, architecture parameters, sampling."""

from dnas.supernet.architecture import ArchitectureParameters, Sample, mean_entropy
from dnas.supernet.cell import CellOutput, MixedOperator, RunCell, run_cell, run_recomputed, weighted_sum
from dnas.supernet.cell_reference import run_cell_reference
from dnas.supernet.ends import SuperEnds, SuperFuse, combination_name
from dnas.supernet.grid import Grid
from dnas.supernet.multi_resolution import MultiResolutionSupernet, can_batch
from dnas.supernet.paths import downsampling, finer_probabilities, meetings, visits

__all__ = [
    "ArchitectureParameters",
    "CellOutput",
    "Grid",
    "MixedOperator",
    "MultiResolutionSupernet",
    "RunCell",
    "Sample",
    "SuperEnds",
    "SuperFuse",
    "can_batch",
    "combination_name",
    "downsampling",
    "finer_probabilities",
    "mean_entropy",
    "meetings",
    "run_cell",
    "run_cell_reference",
    "run_recomputed",
    "visits",
    "weighted_sum",
]
