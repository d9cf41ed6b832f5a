"""Measuring with the settings of a latency table."""

from __future__ import annotations

import torch

from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.latency import LatencyTable, MeasurementSetup, make_setup
from dnas.latency.backends import find_backend


def setup_of(table: LatencyTable, input_size: tuple[int, int], *, allow_mismatch: bool = False) -> MeasurementSetup:
    """The measurement setup of ``table`` on this machine.

    Raises :class:`UserError` if the table is of another device or for another input size, unless ``allow_mismatch``.
    """
    provenance = table.provenance
    device = provenance.device.type
    setup = make_setup(
        device,
        backend=provenance.backend,
        precision=provenance.precision,
        channels_last=provenance.memory_format == "channels_last",
        threads=provenance.threads if device == "cpu" else None,
        batch=provenance.batch,
        cache=provenance.cache,
    )
    table.check_usable(device=setup.device, input_size=input_size, allow_mismatch=allow_mismatch)
    return setup


def not_of_this_machine(table: LatencyTable, input_size: tuple[int, int]) -> str | None:
    """Why networks cannot be measured here as the operators of ``table`` were; None if they can."""
    found = table.check_usable(device=device_to_compare(table), input_size=input_size, allow_mismatch=True)
    if found:
        return "; ".join(found)
    try:
        find_backend(setup_of(table, input_size))
    except UserError as error:  # this machine lacks the runtime
        return str(error)
    return None


def device_to_compare(table: LatencyTable) -> torch.device:
    """The device of this machine that is of the table's type; the CPU if it has none, as of a phone's accelerator."""
    try:
        return resolve_device(table.provenance.device.type, mps=True)
    except UserError:
        return torch.device("cpu")
