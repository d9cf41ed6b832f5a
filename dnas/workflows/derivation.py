"""Derivation of a discrete network from a search or from a file of architecture parameters."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from derive import TABLE, TOLERANCE, Architecture, Derivation, DeriveOptions, Deriver, derive_file, deriver_of
from dnas.errors import UserError
from dnas.latency import Effort, LatencyTable, measure_networks
from dnas.runs import RunFolder
from dnas.runs.configurations import search_configuration
from dnas.workflows.measuring import not_of_this_machine, setup_of
from search_spaces import space_from


def deriver_of_run(path: Path) -> tuple[RunFolder, Deriver[Any]]:
    """The run folder of a search, and the deriver for its space."""
    run = RunFolder.open(path, "search")
    return run, deriver_of(space_from(search_configuration(run).space, str(path / "configuration.yaml")))


def derive_network(source: Path, options: DeriveOptions, *, measure: bool = False) -> Derivation:
    """Derive the discrete network from the run folder of a search or from a file of architecture parameters.

    ``measure`` also measures its latency, with the settings of the latency table; this needs the table's device.
    """
    if not source.exists():
        raise UserError(f"{source}: no such run folder of dnas search, or file of FasterSeg's logits")
    table = _table_to_measure_with(source, options.table) if measure else None
    if source.is_file():
        if options.candidates is not None:
            raise UserError(f"{source}: has no weights to judge candidates by; give the run folder of a search")
        derivation = derive_file(source, options)
    else:
        run, deriver = deriver_of_run(source)
        _require_reachable(run, deriver, options)
        derivation = _with_target(deriver.derive(run, options))
    return derivation if table is None else _measured(derivation, table)


def measure_architecture(architecture: Architecture, table: LatencyTable, effort: Effort | None = None) -> float:
    """The median latency of a network in ms, measured with the settings of the table."""
    size, classes = architecture.input_size, architecture.num_classes
    if size is None or classes is None:
        size, classes = table.provenance.input_size, classes or 19
    setup = setup_of(table, size)
    measured = measure_networks({"derived": partial(architecture.build, classes)}, size, setup, effort=effort)
    return measured["derived"].median


def _require_reachable(run: RunFolder, deriver: Deriver[Any], options: DeriveOptions) -> None:
    """Raise :class:`UserError` for a given target of which no network of the space comes within 5 %."""
    target = options.target_ms
    steered = options.which in (None, "student", deriver.space.steered)  # for others derive() refuses a target
    table = deriver.table_of(run, options) if target is not None and steered else None
    if target is None or table is None:
        return
    fastest, slowest = zip(*deriver.latency_bounds_for(table, target).values(), strict=True)
    by = table.source or "the latency table"
    where = f"{run.path}: latency target: given {target:g} ms, but according to {by} the"
    if min(fastest) > (1 + TOLERANCE) * target:
        raise UserError(f"{where} fastest network of the space takes {min(fastest):.3f} ms: raise the target")
    if max(slowest) < (1 - TOLERANCE) * target:
        raise UserError(f"{where} slowest network of the space takes {max(slowest):.3f} ms: lower the target")


def _with_target(derivation: Derivation) -> Derivation:
    """Add the latency target to the provenance of the architecture, from which the report reads it."""
    if derivation.target_ms is None or "target_ms" in derivation.architecture.provenance:
        return derivation
    latencies = {"target_ms": derivation.target_ms, "predicted_ms": derivation.latency_ms}
    return dataclasses.replace(derivation, architecture=derivation.architecture.with_provenance(**latencies))


def _table_to_measure_with(source: Path, table: LatencyTable | None) -> LatencyTable:
    """The given table or that of the search; raises :class:`UserError` if it is not of this machine."""
    if table is None and (source / TABLE).exists():
        table = LatencyTable.load(source / TABLE)
    if table is None:
        raise UserError("--measure: needs the latency table of this device; give --table")
    elsewhere = not_of_this_machine(table, table.provenance.input_size)
    if elsewhere is not None:
        source_of_table = table.source or "the latency table"
        raise UserError(
            f"--measure: {source_of_table} is not of this machine: {elsewhere}; leave --measure out, or give it on the "
            "machine of the table"
        )
    return table


def _measured(derivation: Derivation, table: LatencyTable) -> Derivation:
    """Add the measured latency to the derivation and to the provenance of the architecture."""
    measured = measure_architecture(derivation.architecture, table)
    architecture = derivation.architecture.with_provenance(measured_ms=f"{measured:.6f}")
    return dataclasses.replace(derivation, architecture=architecture, measured_ms=measured)
