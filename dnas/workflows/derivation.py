"""From a finished search, or a file of searched parameters, to a discrete network."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from derive import TABLE, Architecture, Derivation, DeriveOptions, Deriver, derive_file, deriver_of
from dnas.errors import UserError
from dnas.latency import Effort, LatencyTable, measure_networks
from dnas.runs import RunFolder
from dnas.workflows.measuring import setup_of
from search_spaces import space_from


def deriver_of_run(path: Path) -> tuple[RunFolder, Deriver[Any]]:
    """The run folder of a search and what derives its networks."""
    run = RunFolder.open(path, "search")
    return run, deriver_of(space_from(run.configuration.get("space", {}), str(path / "configuration.yaml")))


def derive_network(source: Path, options: DeriveOptions, *, measure: bool = False) -> Derivation:
    """The discrete network of the run folder of a search, or of a file of searched parameters.

    With ``measure`` it is measured on this machine as its latency table was, which needs the table of this device.
    """
    if not source.exists():
        raise UserError(f"{source}: no such run folder of dnas search, and no such file of FasterSeg's logits")
    if source.is_file():
        derivation = derive_file(source, options)
    else:
        run, deriver = deriver_of_run(source)
        derivation = _with_target(deriver.derive(run, options))
    return _measured(derivation, source, options.table) if measure else derivation


def measure_architecture(architecture: Architecture, table: LatencyTable, effort: Effort | None = None) -> float:
    """The median latency in ms of a network, measured the way the table's operators were."""
    size, classes = architecture.input_size, architecture.num_classes
    if size is None or classes is None:
        size, classes = table.provenance.input_size, classes or 19
    setup = setup_of(table, size)
    measured = measure_networks({"derived": partial(architecture.build, classes)}, size, setup, effort=effort)
    return measured["derived"].median


def _with_target(derivation: Derivation) -> Derivation:
    """The same with the latency target in the architecture's provenance, where the report looks for it."""
    if derivation.target_ms is None or "target_ms" in derivation.architecture.provenance:
        return derivation
    told = derivation.architecture.with_provenance(target_ms=derivation.target_ms, predicted_ms=derivation.latency_ms)
    return dataclasses.replace(derivation, architecture=told)


def _measured(derivation: Derivation, source: Path, table: LatencyTable | None) -> Derivation:
    """The same with its latency on the table's device, which is also noted in the architecture's provenance."""
    if table is None and (source / TABLE).exists():
        table = LatencyTable.load(source / TABLE)
    if table is None:
        raise UserError("--measure: give the latency table of this device, --table")
    measured = measure_architecture(derivation.architecture, table)
    architecture = derivation.architecture.with_provenance(measured_ms=f"{measured:.6f}")
    return dataclasses.replace(derivation, architecture=architecture, measured_ms=measured)
