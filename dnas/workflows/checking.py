"""Predicted against measured: whole networks of a space on the device of a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from derive import Architecture, deriver_of
from derive.base import identity
from dnas.errors import UserError
from dnas.latency import Agreement, Correction, Effort, LatencyTable, agreement, fit_correction, measure_networks
from dnas.latency.check import spread_evenly
from dnas.progress import Progress
from dnas.report import LatencyAgreement, agreement_scatter, save_figure
from dnas.workflows.measuring import setup_of
from search_spaces import SearchSpace

_DRAWN_FOR_EACH = 10


@dataclass(frozen=True)
class PricedNetwork:
    """A network: what tells it from others, the latency in ms that the table predicts, and how to make it."""

    identity: str
    predicted_ms: float
    build: Callable[[], nn.Module]


def sampled_networks(
    table: LatencyTable, space: SearchSpace[Any], count: int, seed: int, *, but: Collection[PricedNetwork] = ()
) -> dict[str, PricedNetwork]:
    """``count`` networks of ``space`` by name, evenly spread over the predicted latencies of ten times as many.

    All are different, and none is one of ``but``. A small space may hold fewer.
    """
    priced = _pricer(table, space)
    drawn = [priced(architecture) for architecture in deriver_of(space).draw(_DRAWN_FOR_EACH * count, seed)]
    known = {network.identity for network in but}
    networks = list({found.identity: found for found in drawn if found.identity not in known}.values())
    chosen = spread_evenly([network.predicted_ms for network in networks], count)
    return {f"sampled {number + 1}": networks[index] for number, index in enumerate(chosen)}


def priced_networks(
    table: LatencyTable, space: SearchSpace[Any], architectures: Mapping[str, Architecture]
) -> dict[str, PricedNetwork]:
    """``architectures`` with their predicted latencies; one that is not of ``space`` raises :class:`UserError`."""
    priced = _pricer(table, space)

    def named(name: str, architecture: Architecture) -> PricedNetwork:
        try:
            return priced(architecture)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    return {name: named(name, architecture) for name, architecture in architectures.items()}


def _pricer(table: LatencyTable, space: SearchSpace[Any]) -> Callable[[Architecture], PricedNetwork]:
    deriver = deriver_of(space)

    def priced(architecture: Architecture) -> PricedNetwork:
        predicted = deriver.predict_ms(architecture, table)
        return PricedNetwork(identity(architecture), predicted, partial(architecture.build, space.num_classes))

    return priced


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
        save_figure(agreement_scatter(self.for_report()), path)


def check_table(
    table: LatencyTable,
    space: SearchSpace[Any],
    networks: int,
    *,
    derived: Mapping[str, Architecture] | None = None,
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
    checked |= priced_networks(table, space, derived or {})
    fitting = sampled_networks(table, space, fit, seed + 1, but=checked.values()) if fit else {}
    networks_by_name = {**checked, **{f"fitting {name}": network for name, network in fitting.items()}}

    def measured(which: Mapping[str, PricedNetwork], order: int) -> dict[str, float]:
        builders = {name: network.build for name, network in which.items()}
        found = measure_networks(builders, space.input_size, setup, effort=effort, seed=order, progress=progress)
        return {name: entry.median for name, entry in found.items()}

    first = measured(networks_by_name, seed)
    again = measured(checked, seed + 1) if repeat else {}
    names = tuple(checked)
    predicted = tuple(checked[name].predicted_ms for name in names)
    latencies, repeated = tuple(first[name] for name in names), tuple(again[name] for name in names if again)
    correction = None
    if fitting:
        correction = fit_correction(
            [network.predicted_ms for network in fitting.values()], [first[f"fitting {name}"] for name in fitting]
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


def _statistics(found: Agreement) -> str:
    return f"Pearson {found.pearson:.4f}   Spearman {found.spearman:.4f}   mean absolute error {found.mape:.1f} %"
