"""Measuring on this machine as a latency table was measured."""

from __future__ import annotations

from dnas.latency import LatencyTable, Target, make_target


def setup_of(table: LatencyTable, input_size: tuple[int, int], *, allow_mismatch: bool = False) -> Target:
    """The device of the table's kind in this machine, driven as the table's was.

    Raises :class:`UserError` where it is another device, or the table is for images of another size, unless allowed.
    """
    provenance = table.provenance
    device = provenance.device.type
    target = make_target(
        device,
        backend=provenance.backend,
        precision=provenance.precision,
        channels_last=provenance.memory_format == "channels_last",
        threads=provenance.threads if device == "cpu" else None,
        batch=provenance.batch,
        cache=provenance.cache,
    )
    table.check_usable(device=target.device, input_size=input_size, allow_mismatch=allow_mismatch)
    return target
