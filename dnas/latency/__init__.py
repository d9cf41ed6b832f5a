"""Latency: measure modules on a device, keep the figures in a table, check them against whole networks."""

from dnas.latency.backends import BACKENDS
from dnas.latency.build import BuildInterrupted, build_table
from dnas.latency.check import Agreement, Correction, agreement, fit_correction, measure_networks, noise_floor
from dnas.latency.measure import WorkItem, measure, measure_many
from dnas.latency.provenance import Provenance
from dnas.latency.setup import MeasurementSetup, make_setup
from dnas.latency.spec import InventoryItem, OperatorSpec
from dnas.latency.statistics import Effort, Measurement
from dnas.latency.table import LatencyTable, TableDiff

__all__ = [
    "BACKENDS",
    "Agreement",
    "BuildInterrupted",
    "Correction",
    "Effort",
    "InventoryItem",
    "LatencyTable",
    "Measurement",
    "MeasurementSetup",
    "OperatorSpec",
    "Provenance",
    "TableDiff",
    "WorkItem",
    "agreement",
    "build_table",
    "fit_correction",
    "make_setup",
    "measure",
    "measure_many",
    "measure_networks",
    "noise_floor",
]
