"""Measuring with the settings of a latency table."""

from __future__ import annotations

from dnas.latency import LatencyTable, MeasurementSetup, make_setup


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
