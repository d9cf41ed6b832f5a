"""Predicted against measured: whole networks of a space on the device of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from derive import AnyArchitecture, Architecture
from dnas.cli.candidates import Candidate, derived_networks, sampled_networks
from dnas.cli.common import save_figure
from dnas.latency import (
    Agreement,
    Correction,
    Effort,
    LatencyTable,
    MeasurementSetup,
    agreement,
    fit_correction,
    make_setup,
    measure_networks,
)
from dnas.progress import Progress
from dnas.report import LatencyAgreement, agreement_scatter
from search_spaces import SearchSpace


@dataclass(frozen=True)
class CheckResult:
    """Latencies in ms of the same networks, and how well they agree.

    ``repeated`` are those of a second measurement, ``noise`` its agreement with the first: the best that a prediction
    can be expected to do. ``correction`` was fitted on other networks, ``corrected`` is the agreement of the
    predictions that it was applied to.
    """

    names: tuple[str, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    agreement: Agreement
    repeated: tuple[float, ...] = ()
    noise: Agreement | None = None
    correction: Correction | None = None
    corrected: Agreement | None = None

    def rows(self) -> Iterator[tuple[str, float, float]]:
        """Name, predicted, measured."""
        return zip(self.names, self.predicted, self.measured, strict=True)

    def lines(self) -> Iterator[str]:
        """Every network and the statistics, for people."""
        for index, (name, predicted, measured) in enumerate(self.rows()):
            again = f"   again {self.repeated[index]:8.3f} ms" if self.repeated else ""
            yield f"  {name:<14} predicted {predicted:8.3f} ms   measured {measured:8.3f} ms{again}"
        yield _statistics(self.agreement)
        if self.noise is not None:
            yield f"{_statistics(self.noise)}   (measured twice: the noise of this machine)"
        if self.correction is not None and self.corrected is not None:
            factor, offset = self.correction.factor, self.correction.offset_ms
            yield (
                f"{_statistics(self.corrected)}   (corrected: {factor:.4f} x predicted {offset:+.3f} ms, fitted on "
                f"{self.correction.networks} other networks)"
            )

    def to_mapping(self) -> dict[str, Any]:
        """The statistics, and every network."""
        rows = [{"name": n, "predicted_ms": p, "measured_ms": m} for n, p, m in self.rows()]
        for row, again in zip(rows, self.repeated, strict=False):
            row["repeated_ms"] = again
        content: dict[str, Any] = {**self.agreement.to_mapping(), "latencies": rows}
        if self.noise is not None:
            content["noise"] = self.noise.to_mapping()
        if self.correction is not None and self.corrected is not None:
            content["correction"] = {**self.correction.to_mapping(), "agreement": self.corrected.to_mapping()}
        return content

    def for_report(self) -> LatencyAgreement:
        """As the report draws it."""
        found = self.agreement
        return LatencyAgreement(
            predicted_ms=self.predicted,
            measured_ms=self.measured,
            pearson=found.pearson,
            spearman=found.spearman,
            mape=found.mape,
            networks=self.names,
            marked=tuple(name for name in self.names if not name.startswith("sampled")),
        )

    def save_figure(self, path: Path) -> None:
        """The scatter of predicted against measured."""
        save_figure(path, lambda: agreement_scatter(self.for_report()))


def check_table(
    table: LatencyTable,
    space: SearchSpace,
    networks: int,
    *,
    derived: Mapping[str, AnyArchitecture] | None = None,
    repeat: bool = False,
    fit: int = 0,
    seed: int = 0,
    effort: Effort | None = None,
    allow_mismatch: bool = False,
    progress: Progress | None = None,
) -> CheckResult:
    """Measure sampled networks of ``space``, and those ``derived``, the way the table's operators were measured.

    The sampled ones are spread evenly over the latencies that the table predicts. ``repeat`` measures all of them a
    second time, in rounds of their own. ``fit`` is how many further networks serve to fit a correction, 0 for none;
    they take part in nothing else.
    """
    setup = setup_of(table, space.input_size, allow_mismatch=allow_mismatch)
    checked = sampled_networks(table, space, networks, seed) if networks else {}
    checked |= derived_networks(table, space, derived or {})
    fitting = sampled_networks(table, space, fit, seed + 1, but=checked.values()) if fit else {}
    candidates = {**checked, **{f"fitting {name}": candidate for name, candidate in fitting.items()}}

    def measured(which: Mapping[str, Candidate], order: int) -> dict[str, float]:
        builders = {name: candidate.build for name, candidate in which.items()}
        found = measure_networks(builders, space.input_size, setup, effort=effort, seed=order, progress=progress)
        return {name: entry.median for name, entry in found.items()}

    first = measured(candidates, seed)
    again = measured(checked, seed + 1) if repeat else {}
    names = tuple(checked)
    predicted = tuple(checked[name].predicted_ms for name in names)
    latencies, repeated = tuple(first[name] for name in names), tuple(again[name] for name in names if again)
    correction = None
    if fitting:
        correction = fit_correction(
            [candidate.predicted_ms for candidate in fitting.values()], [first[f"fitting {name}"] for name in fitting]
        )
    return CheckResult(
        names=names,
        predicted=predicted,
        measured=latencies,
        agreement=agreement(predicted, latencies),
        repeated=repeated,
        noise=agreement(repeated, latencies) if repeated else None,
        correction=correction,
        corrected=agreement(correction.apply(predicted), latencies) if correction else None,
    )


def setup_of(table: LatencyTable, input_size: tuple[int, int], *, allow_mismatch: bool = False) -> MeasurementSetup:
    """The device of the table's kind in this machine, driven as the table's was.

    Raises :class:`UserError` where it is another device, or the table is for images of another size, unless allowed.
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


def measure_architecture(architecture: Architecture, table: LatencyTable, effort: Effort | None = None) -> float:
    """The median latency in ms of a derived network, measured the way the table's operators were."""
    size, classes = architecture.input_size, architecture.num_classes
    if size is None or classes is None:
        size, classes = table.provenance.input_size, classes or 19
    setup = setup_of(table, size)
    measured = measure_networks({"derived": partial(architecture.build, classes)}, size, setup, effort=effort)
    return measured["derived"].median


def _statistics(found: Agreement) -> str:
    return f"Pearson {found.pearson:.4f}   Spearman {found.spearman:.4f}   mean absolute error {found.mape:.1f} %"
