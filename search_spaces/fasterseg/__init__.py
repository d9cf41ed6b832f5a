"""FasterSeg's search space: grid of cells, supernet, architecture parameters, expected latency and search problem."""

from search_spaces.fasterseg.cell_reference import run_cell_reference
from search_spaces.fasterseg.cells import CellOutput, MixedOperator, RunCell, run_cell, run_recomputed, weighted_sum
from search_spaces.fasterseg.config import FasterSegConfig, FasterSegSearchConfig
from search_spaces.fasterseg.ends import SuperEnds, SuperFuse, combination_name
from search_spaces.fasterseg.expected_latency import DecoupledWeights, ExpectedLatency, Sensitivities, uniform_sample
from search_spaces.fasterseg.grid import Grid
from search_spaces.fasterseg.parameters import ArchitectureParameters, Sample
from search_spaces.fasterseg.paths import downsampling, finer_probabilities, meetings, visits
from search_spaces.fasterseg.plan import NetworkPlan
from search_spaces.fasterseg.problem import CoSearch
from search_spaces.fasterseg.space import FasterSegSpace
from search_spaces.fasterseg.supernet import MultiResolutionSupernet, can_batch

__all__ = [
    "ArchitectureParameters",
    "CellOutput",
    "CoSearch",
    "DecoupledWeights",
    "ExpectedLatency",
    "FasterSegConfig",
    "FasterSegSearchConfig",
    "FasterSegSpace",
    "Grid",
    "MixedOperator",
    "MultiResolutionSupernet",
    "NetworkPlan",
    "RunCell",
    "Sample",
    "Sensitivities",
    "SuperEnds",
    "SuperFuse",
    "can_batch",
    "combination_name",
    "downsampling",
    "finer_probabilities",
    "meetings",
    "run_cell",
    "run_cell_reference",
    "run_recomputed",
    "uniform_sample",
    "visits",
    "weighted_sum",
]
