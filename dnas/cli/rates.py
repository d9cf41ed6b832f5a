"""Searches of dilation rates: deriving from them, and what the report shows of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from derive import DilatedArchitecture, round_rates
from derive.dilated import BaseNetwork
from dnas.errors import UserError
from dnas.latency import LatencyTable
from dnas.latency.dilation import DilationLatency
from dnas.report import Figure, Section, rate_curves, sampling_positions, save_png, svg_text
from dnas.report.rates import by_block
from dnas.runs import RunFolder
from dnas.search import RateSearch
from dnas.search.rates import ARCHITECTURE
from search_spaces import RegSegSpace, space_from


@dataclass(frozen=True)
class RateDerivation:
    """Whole rates derived from searched ones, the field of view in pixels, and the predicted latency in ms, if any."""

    architecture: DilatedArchitecture
    field_of_view: int
    latency_ms: float | None

    def to_mapping(self) -> dict[str, Any]:
        """The content of ``dnas derive --json``."""
        return {
            "rule": "paper",
            "rates": self.architecture.rates,
            "searched_rates": self.architecture.searched_rates,
            "field_of_view": self.field_of_view,
            "branches": [],
            "latency_ms": self.latency_ms,
        }

    def lines(self) -> Iterator[str]:
        """The rates of every block, for people."""
        searched, whole = by_block(self.architecture.searched_rates), by_block(self.architecture.rates)
        for block, rates in whole.items():
            before = ", ".join(f"{rate:.2f}" for rate in searched[block])
            yield f"  {block:<32} ({before}) -> ({', '.join(f'{rate:g}' for rate in rates)})"
        yield f"field of view {self.field_of_view} pixels"
        if self.latency_ms is not None:
            yield f"predicted latency {self.latency_ms:.3f} ms"


def rate_space_of(path: Path) -> RegSegSpace | None:
    """The space of a run of ``dnas search`` that searched dilation rates; None for any other run."""
    run = RunFolder.open(path, "search")
    space = space_from(run.configuration.get("space", {}), str(path / "configuration.yaml"))
    return space if isinstance(space, RegSegSpace) else None


def derive_rates(path: Path, space: RegSegSpace, which: str = "student", table: Path | None = None) -> RateDerivation:
    """The network of whole rates of a search, by RegSeg's rule within the space's bounds.

    ``table`` prices it; it defaults to the run's own. Such a search has one network, so ``which`` may not be "teacher".
    """
    if which != "student":
        raise UserError(f"{path}: a search of dilation rates has no {which}; leave --which out")
    run = RunFolder.open(path, "search")
    problem = space.bounded(space.network(), _latency(space, table or path / "table.json", required=table is not None))
    searched = _searched(run, problem)
    rates = round_rates(problem, searched)
    architecture = DilatedArchitecture(
        network=BaseNetwork(name=space.settings.network.name, options=space.settings.network.options),
        rates=rates,
        searched_rates={name: round(rate, 4) for name, rate in searched.items()},
        num_classes=space.num_classes,
        input_size=space.input_size,
        provenance={
            "run": str(path.resolve()),
            "space": str(run.configuration.get("preset", "")),
            "rule": "paper",
            "seed": str(run.seed),
            "epochs": str(len(run.records("epoch"))),
        },
    )
    latency: dict[str, float] = problem.monitor()["latency_ms"]
    return RateDerivation(architecture, architecture.field_of_view(), latency.get(ARCHITECTURE))


def rate_sections(run: RunFolder, space: RegSegSpace) -> list[Section]:
    """The report's sections on a search of dilation rates, finished or not."""
    records = run.records()
    if not any(record["kind"] == "epoch" for record in records):
        return []
    problem = space.bounded(space.network())
    initial = problem.monitor()
    sections = [
        Section(
            title="Dilation rates",
            lead="Weights and dilation rates, trained together on all training images.",
            blocks=[
                Figure(
                    svg=svg_text(rate_curves(records, initial["rates"], initial["field_of_view"])),
                    caption="The rates of each block's branches and the field of view of the whole backbone. As a rule "
                    "one branch of a block keeps a small rate, for detail, while the other grows as far as the task "
                    "needs; a rate that has come to rest at the grey line, its bound, would grow further.",
                    description="Curves of the dilation rates of every block and of the field of view",
                    width=960,
                )
            ],
        )
    ]
    searched = _searched(run, problem)
    whole = round_rates(problem, searched)
    drawing = sampling_positions(searched, whole)
    figure = Figure(
        svg=svg_text(drawing),
        caption="Where the kernel of each branch reads, before rounding (open circles, between pixels, as real rates "
        "interpolate) and after (dots). Of a block's rates the smaller is rounded down and the larger up.",
        description="Sampling positions of the searched and of the rounded dilation rates of every block",
        width=round(float(drawing.get_figwidth()) * 92),
    )
    lead = "From searched rates to whole ones."
    return [*sections, Section(title="Sampling positions", lead=lead, blocks=[figure])]


def write_rate_pictures(run: RunFolder, space: RegSegSpace, folder: Path) -> None:
    """The figures of :func:`rate_sections` as PNG files."""
    problem = space.bounded(space.network())
    initial = problem.monitor()
    folder.mkdir(parents=True, exist_ok=True)
    save_png(rate_curves(run.records(), initial["rates"], initial["field_of_view"]), folder / "rates.png")
    searched = _searched(run, problem)
    save_png(sampling_positions(searched, round_rates(problem, searched)), folder / "sampling_positions.png")


def _searched(run: RunFolder, problem: RateSearch) -> dict[str, float]:
    """The rates of the last finished epoch in the order of the network's layers, which the file does not keep."""
    weights = run.load_weights("architecture")
    found = {name.removeprefix(f"{ARCHITECTURE}."): float(rate) for name, rate in weights.items()}
    if found.keys() != problem.layers.keys():
        raise UserError(f"{run.path}: holds rates of other layers than its configuration says")
    return {name: found[name] for name in problem.layers}


def _latency(space: RegSegSpace, table: Path, *, required: bool) -> DilationLatency | None:
    return space.latency(LatencyTable.load(table)) if required or table.exists() else None
