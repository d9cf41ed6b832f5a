"""Searches of dilation rates: deriving from them, and what the report shows of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as MatplotlibFigure

from derive import DilatedArchitecture, round_rates
from derive.dilated import BaseNetwork
from dnas.cli.growth import growth_of, snapshots
from dnas.errors import UserError
from dnas.latency import LatencyTable
from dnas.latency.dilation import DilationLatency
from dnas.report import (
    Figure,
    Growth,
    Section,
    dilated_drawing,
    growth_picture,
    png_bytes,
    rate_curves,
    sampling_positions,
    save_png,
    svg_text,
)
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
    if not run.records("epoch"):
        return []
    problem = space.bounded(space.network())
    growth = growth_of(run, space, problem, snapshots(run, space))
    curves = rate_curves(run.records(), *_initial(problem))
    searched = _searched(run, problem)
    positions = sampling_positions(searched, round_rates(problem, searched))
    derived = derive_rates(run.path, space)
    network = dilated_drawing(derived.architecture.graph())
    over_time = [] if growth is None else [_growth_figure(growth)]
    over_time.append(
        _figure(
            curves,
            "The rates of each block's branches and the field of view of the whole backbone. As a rule one branch of a "
            "block keeps a small rate, for detail, while the other grows as far as the task needs; a rate that has "
            "come to rest at the grey line, its bound, would grow further.",
            "Curves of the dilation rates of every block and of the field of view",
        )
    )
    rounding = [
        _figure(
            positions,
            "Where the kernel of each branch reads, before rounding (open circles, between pixels, as real rates "
            "interpolate) and after (dots). Of a block's rates the smaller are rounded down and the larger up.",
            "Sampling positions of the searched and of the rounded dilation rates of every block",
        ),
        _figure(
            network,
            "The derived network: the dilated blocks with the whole rates of their branches, from the first layers "
            "(stem) to the last (head), the deeper the blue the larger the rate; below each, how many pixels of the "
            f"image a value behind it depends on. Field of view: {derived.field_of_view} pixels.",
            "The dilated blocks of the derived network with their rates and fields of view",
        ),
    ]
    lead = "RegSeg's search: weights and dilation rates, trained together on all training images."
    return [
        Section(title="Dilation rates", lead=lead, blocks=over_time),
        Section(title="Sampling positions", lead="From searched rates to whole ones.", blocks=rounding),
    ]


def _initial(problem: RateSearch) -> tuple[dict[str, float], int]:
    """Rates and field of view of a search that has not begun."""
    now = problem.monitor()
    return now["rates"], now["field_of_view"]


def _figure(drawing: MatplotlibFigure, caption: str, description: str) -> Figure:
    width = round(float(drawing.get_figwidth()) * 92)
    return Figure(svg=svg_text(drawing), caption=caption, description=description, width=width)


def _growth_figure(growth: Growth) -> Figure:
    return Figure(
        image=png_bytes(growth_picture(growth)),
        caption="One validation image while the rates grow. Above: what the network of that step predicts. Below: the "
        "places of the image from which it makes the output at the cross, through all blocks; the larger a dot, the "
        "more ways lead there.",
        description="Predictions and sampling positions at several steps of the search",
        width=960,
    )


def write_rate_pictures(run: RunFolder, space: RegSegSpace, folder: Path) -> None:
    """The figures of :func:`rate_sections` as PNG files."""
    problem = space.bounded(space.network())
    folder.mkdir(parents=True, exist_ok=True)
    growth = growth_of(run, space, problem, snapshots(run, space))
    if growth is not None:
        save_png(growth_picture(growth), folder / "growth.png")
    save_png(rate_curves(run.records(), *_initial(problem)), folder / "rates.png")
    searched = _searched(run, problem)
    save_png(sampling_positions(searched, round_rates(problem, searched)), folder / "sampling_positions.png")
    save_png(dilated_drawing(derive_rates(run.path, space).architecture.graph()), folder / "derived.png")


def _searched(run: RunFolder, problem: RateSearch) -> dict[str, float]:
    """The rates of the last finished epoch in the order of the network's layers, which the file does not keep."""
    weights = run.load_weights("architecture")
    found = {name.removeprefix(f"{ARCHITECTURE}."): float(rate) for name, rate in weights.items()}
    if found.keys() != problem.layers.keys():
        raise UserError(f"{run.path}: holds rates of other layers than its configuration says")
    return {name: found[name] for name in problem.layers}


def _latency(space: RegSegSpace, table: Path, *, required: bool) -> DilationLatency | None:
    return space.latency(LatencyTable.load(table)) if required or table.exists() else None
