"""Predicted against measured: whole networks of a space on the device of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from derive import Architecture, sample_architectures
from dnas.errors import UserError
from dnas.latency import Agreement, Effort, LatencyTable, Progress, agreement, make_target, measure_networks
from dnas.report import LatencyAgreement, agreement_scatter, save_png, save_svg
from search_spaces import FasterSegSpace, SearchSpace


@dataclass(frozen=True)
class CheckResult:
    """Latencies in ms of the same networks, and how well they agree."""

    names: tuple[str, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    agreement: Agreement

    def rows(self) -> Iterator[tuple[str, float, float]]:
        """Name, predicted, measured."""
        return zip(self.names, self.predicted, self.measured, strict=True)

    def to_mapping(self) -> dict[str, Any]:
        """The statistics, and every network."""
        rows = [{"name": n, "predicted_ms": p, "measured_ms": m} for n, p, m in self.rows()]
        return {**self.agreement.to_mapping(), "latencies": rows}

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
        save = {".svg": save_svg, ".png": save_png}.get(path.suffix)
        if save is None:
            raise UserError(f"{path}: expected a name that ends in .svg or .png")
        save(agreement_scatter(self.for_report()), path)


def check_table(
    table: LatencyTable,
    space: SearchSpace,
    networks: int,
    *,
    derived: dict[str, Architecture] | None = None,
    seed: int = 0,
    effort: Effort | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> CheckResult:
    """Measure sampled networks of ``space``, and those ``derived``, the way the table's operators were measured."""
    if not isinstance(space, FasterSegSpace):
        raise UserError(f"{space.name}: only networks of a fasterseg space can be sampled")
    provenance = table.provenance
    device = provenance.device.type
    target = make_target(
        device,
        backend=provenance.backend,
        precision=provenance.precision,
        channels_last=provenance.memory_format == "channels_last",
        threads=provenance.threads if device == "cpu" else None,
        batch=provenance.batch,
    )
    table.check_usable(device=target.device, input_size=space.input_size)
    sampled = sample_architectures(space.plan(), space.end_ratios["student"], networks, seed)
    architectures = {**{f"sampled {i + 1}": a for i, a in enumerate(sampled)}, **(derived or {})}
    size, classes = space.input_size, space.num_classes
    predicted = {
        name: sum(map(table.lookup, architecture.signatures(classes, size)))
        for name, architecture in architectures.items()
    }
    builders = {name: partial(architecture.build, classes) for name, architecture in architectures.items()}
    measured = measure_networks(builders, size, target, effort=effort, seed=seed, progress=progress)
    names = tuple(architectures)
    first, second = tuple(predicted[n] for n in names), tuple(measured[n].median for n in names)
    return CheckResult(names, first, second, agreement(first, second))
