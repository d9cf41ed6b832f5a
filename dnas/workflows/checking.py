"""Checking a latency table: predicted against measured latencies of whole networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from derive import Architecture, deriver_of
from derive.architecture import identity
from dnas.errors import UserError
from dnas.input_channels import with_input_channels
from dnas.latency import Agreement, Correction, Effort, LatencyTable, agreement, fit_correction, measure_networks
from dnas.latency.check import spread_evenly
from dnas.progress import Progress
from dnas.report import LatencyAgreement, agreement_scatter, save_figure
from dnas.workflows.measuring import setup_of
from search_spaces import SearchSpace

_CANDIDATES_PER_NETWORK = 10


@dataclass(frozen=True)
class PricedNetwork:
    """A network with its identity (equal for equal networks), predicted latency in ms, and builder."""

    identity: str
    predicted_ms: float
    build: Callable[[], nn.Module]


def sampled_networks(
    table: LatencyTable, space: SearchSpace[Any], count: int, seed: int, *, but: Collection[PricedNetwork] = ()
) -> dict[str, PricedNetwork]:
    """``count`` networks of ``space`` by name, evenly spread over the predicted latencies of ten times as many.

    All are different, and none is in ``but``. A small space may have fewer.
    """
    predict = _predictor(table, space)
    architectures = deriver_of(space).draw(_CANDIDATES_PER_NETWORK * count, seed)
    candidates = [predict(architecture) for architecture in architectures]
    excluded = {network.identity for network in but}
    networks = list({found.identity: found for found in candidates if found.identity not in excluded}.values())
    chosen = spread_evenly([network.predicted_ms for network in networks], count)
    return {f"sampled {number + 1}": networks[index] for number, index in enumerate(chosen)}


def priced_networks(
    table: LatencyTable, space: SearchSpace[Any], architectures: Mapping[str, Architecture]
) -> dict[str, PricedNetwork]:
    """``architectures`` with predicted latencies; raises :class:`UserError` if one is not in ``space``."""
    predict = _predictor(table, space)

    def named(name: str, architecture: Architecture) -> PricedNetwork:
        try:
            return predict(architecture)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    return {name: named(name, architecture) for name, architecture in architectures.items()}


def _predictor(table: LatencyTable, space: SearchSpace[Any]) -> Callable[[Architecture], PricedNetwork]:
    deriver = deriver_of(space)

    def predict(architecture: Architecture) -> PricedNetwork:
        predicted = deriver.predict_ms(architecture, table)
        return PricedNetwork(identity(architecture), predicted, partial(_built, architecture, space))

    return predict


def _built(architecture: Architecture, space: SearchSpace[Any]) -> nn.Module:
    return with_input_channels(architecture.build(space.num_classes), space.channels)


@dataclass(frozen=True)
class CheckResult:
    """Predicted and measured latencies of networks in ms, and their agreement.

    ``repeated`` is a second measurement and ``noise`` its agreement with the first, which predictions cannot exceed.
    ``correction`` was fitted on other networks; ``corrected`` is the agreement of the corrected predictions.
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
        """Every network and the statistics as readable lines."""
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
        """The statistics and every network, for JSON."""
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
        """The data for the report."""
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
        """Save the scatter plot of predicted against measured latencies."""
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
    """Measure sampled and ``derived`` networks of ``space`` with the settings of the table.

    The sampled networks are evenly spread over the predicted latencies. ``repeat`` measures all networks a second time,
    in separate rounds. ``fit`` is the number of further networks for fitting a correction, 0 for none; they are not
    part of the check.
    """
    setup = setup_of(table, space.input_size, allow_mismatch=allow_mismatch)
    checked = sampled_networks(table, space, networks, seed) if networks else {}
    checked |= priced_networks(table, space, derived or {})
    fitting = sampled_networks(table, space, fit, seed + 1, but=checked.values()) if fit else {}
    networks_by_name = {**checked, **{f"fitting {name}": network for name, network in fitting.items()}}

    def measure(which: Mapping[str, PricedNetwork], order_seed: int) -> dict[str, float]:
        builders = {name: network.build for name, network in which.items()}
        found = measure_networks(
            builders,
            space.input_size,
            setup,
            effort=effort,
            channels=space.channels,
            seed=order_seed,
            progress=progress,
        )
        return {name: entry.median for name, entry in found.items()}

    first = measure(networks_by_name, seed)
    second = measure(checked, seed + 1) if repeat else {}
    names = tuple(checked)
    predicted = tuple(checked[name].predicted_ms for name in names)
    latencies, repeated = tuple(first[name] for name in names), tuple(second[name] for name in names if second)
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
