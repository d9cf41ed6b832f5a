"""From run folders to the content of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from derive import AnyArchitecture, Architecture, DilatedArchitecture, architecture_from
from dnas.cli.branches import load_selection
from dnas.cli.checking import CheckResult, check_table
from dnas.cli.common import NetworkAtHand, network_at_hand
from dnas.cli.rates import rate_sections, rate_space_of, write_rate_pictures
from dnas.config import parse_config
from dnas.data import DataConfig, SegmentationDataset, eval_transform, open_dataset
from dnas.errors import UserError
from dnas.export import benchmark
from dnas.latency import Effort, LatencyTable
from dnas.profile import count_multiply_adds, count_parameters
from dnas.report import (
    BranchChoice,
    ClassLabels,
    DerivedArchitecture,
    Example,
    LatencySummary,
    NetworkFigures,
    ReportData,
    Reproduction,
    agreement_scatter,
    architecture_drawing,
    dilated_drawing,
    examples_sheet,
    headline,
    is_dilated,
    monitor_curves,
    retraining_curves,
    save_png,
    search_curves,
)
from dnas.runs import RunFolder
from dnas.training import Evaluation, evaluate
from search_spaces import FasterSegSpace, space_from


def gather_report(
    search_run: Path | None,
    student: Path | None,
    teacher: Path | None,
    *,
    networks: int = 12,
    examples: int = 4,
    title: str = "dnas",
    commands: tuple[str, ...] = (),
) -> ReportData:
    """Everything that the given runs can show; at least one must be given.

    Networks are evaluated, benchmarked and checked against the latency table here and now, on this machine's CPU or
    the device of the table.
    """
    if search_run is None and student is None and teacher is None:
        raise UserError("report: give at least one of --search, --student and --teacher")
    at_hand = {name: network_at_hand(str(path)) for name, path in (("student", student), ("teacher", teacher)) if path}
    search = None if search_run is None else RunFolder.open(search_run, "search")
    rates = None if search_run is None else rate_space_of(search_run)
    table = _table_of(search_run)
    architectures = {name: a for name, found in at_hand.items() if (a := _architecture_of(found)) is not None}
    check = None
    if search is not None and table is not None and networks >= 2:
        check = _check(search, table, architectures, networks)
    scores = {name: _evaluate(found) for name, found in at_hand.items()}
    first = next(iter(at_hand.values()), None)
    figures = [_figures(name, found, scores[name], table, check) for name, found in at_hand.items()]
    reference = search or (first.run if first else None)
    assert reference is not None
    return ReportData(
        title=title,
        subtitle=_subtitle(reference),
        latency=None if table is None else _summary(table),
        search_records=[] if search is None or rates is not None else search.records(),
        selections={} if search_run is None else _selections(search_run),
        architectures=[
            DerivedArchitecture(name=name, graph=architecture.graph(), note=_note(architecture))
            for name, architecture in architectures.items()
        ],
        summary=headline(figures[0]) if figures else (),
        networks=figures,
        retrain_records={name: found.run.records() for name, found in at_hand.items() if found.run},
        agreement=None if check is None else check.for_report(),
        labels=None
        if first is None or first.labels is None
        else ClassLabels(names=first.labels.names, colours=first.labels.colours),
        examples=[] if first is None else _examples(first, examples),
        class_iou={name: score.iou for name, score in scores.items()},
        extra=[] if search is None or rates is None else rate_sections(search, rates),
        reproduction=_reproduction(reference, commands),
    )


def write_pictures(data: ReportData, folder: Path, search_run: Path | None = None) -> None:
    """The report's figures as PNG files, for a README or a talk."""
    folder.mkdir(parents=True, exist_ok=True)
    rates = None if search_run is None else rate_space_of(search_run)
    if search_run is not None and rates is not None:
        write_rate_pictures(RunFolder.open(search_run, "search"), rates, folder)
    if data.search_records:
        save_png(search_curves(data.search_records), folder / "search.png")
        save_png(monitor_curves(data.search_records), folder / "monitor.png")
    if data.retrain_records:
        save_png(retraining_curves(data.retrain_records), folder / "retraining.png")
    for derived in data.architectures:
        draw = dilated_drawing if is_dilated(derived.graph) else architecture_drawing
        save_png(draw(derived.graph, derived.name), folder / f"architecture_{derived.name.replace(' ', '_')}.png")
    if data.agreement is not None:
        save_png(agreement_scatter(data.agreement), folder / "latency_check.png")
    if data.examples and data.labels is not None:
        save_png(examples_sheet(data.examples, data.labels), folder / "examples.png")


def _table_of(search_run: Path | None) -> LatencyTable | None:
    path = None if search_run is None else search_run / "table.json"
    return None if path is None or not path.exists() else LatencyTable.load(path)


def _architecture_of(found: NetworkAtHand) -> AnyArchitecture | None:
    """The architecture of a retrained network; None for a network by name."""
    described = found.run.configuration["network"].get("architecture") if found.run else None
    return None if described is None else architecture_from(described, found.name)


def _selections(search_run: Path) -> dict[str, list[BranchChoice]]:
    """The scored combinations of branches that the run folder keeps."""
    return {
        which: [
            BranchChoice(
                branches=score["branches"],
                miou=score["miou"],
                latency_ms=score["latency_ms"],
                score=score["score"],
                argmax_ms=score["argmax_ms"],
                lost_log_probability=score["lost_log_probability"],
                chosen=score["branches"] == selection["chosen"],
            )
            for score in selection["scores"]
        ]
        for which, selection in load_selection(search_run).items()
    }


def _check(
    search: RunFolder, table: LatencyTable, architectures: dict[str, AnyArchitecture], networks: int
) -> CheckResult | None:
    space = space_from(search.configuration.get("space", {}), str(search.path))
    if not isinstance(space, FasterSegSpace):
        return None
    effort = Effort(rounds=5, time_per_entry=0.3)
    derived = {name: found for name, found in architectures.items() if isinstance(found, Architecture)}
    return check_table(table, space, networks, derived=derived, effort=effort)


def _evaluate(found: NetworkAtHand) -> Evaluation:
    assert found.augmentation is not None
    return evaluate(found.network, _validation_data(found), found.augmentation, device="cpu")


def _validation_data(found: NetworkAtHand) -> SegmentationDataset:
    assert found.run is not None
    source = str(found.run.path / "configuration.yaml")
    return open_dataset(parse_config(DataConfig, found.run.configuration["data"], source), "val")


def _figures(
    name: str, found: NetworkAtHand, score: Evaluation, table: LatencyTable | None, check: CheckResult | None
) -> NetworkFigures:
    assert found.input_size is not None
    size = found.input_size
    predicted = measured = target = None
    architecture = _architecture_of(found)
    if architecture is not None and "target_ms" in architecture.provenance:
        target = float(architecture.provenance["target_ms"])
    if check is not None and name in check.names:
        predicted, measured = check.predicted[check.names.index(name)], check.measured[check.names.index(name)]
    else:
        threads = None if table is None else table.provenance.threads
        measured = benchmark(found.network, size, threads=threads, seconds=1.0)["latency_ms"]["median"]
    return NetworkFigures(
        name=name,
        miou=score.miou,
        pixel_accuracy=score.pixel_accuracy,
        latency_ms=measured,
        predicted_latency_ms=predicted,
        target_ms=target,
        parameters=count_parameters(found.network),
        multiply_adds=count_multiply_adds(found.network, size),
    )


def _examples(found: NetworkAtHand, count: int) -> list[Example]:
    """Predictions on validation images spread over the split."""
    assert found.augmentation is not None
    data, transform = _validation_data(found), eval_transform(found.augmentation)
    chosen = [i * len(data) // max(1, count) for i in range(min(count, len(data)))]
    examples = []
    for index in chosen:
        image, mask = data[index]
        normalised, labels = transform(image, mask)
        with torch.no_grad():
            logits = found.network(normalised[None])
        examples.append(
            Example(
                name=data.file_name(index),
                image=image.permute(1, 2, 0).numpy().astype(np.uint8),
                prediction=logits[0].argmax(0).numpy(),
                truth=labels.numpy(),
            )
        )
    return examples


def _summary(table: LatencyTable) -> LatencySummary:
    provenance = table.provenance
    return LatencySummary(
        device=provenance.device.name,
        backend=provenance.backend,
        precision=provenance.precision,
        entries=len(table),
        input_size=provenance.input_size,
        slowest=[(key, entry.median) for key, entry in table.slowest(8)],
        details={
            "threads": provenance.threads,
            "batch": provenance.batch,
            "memory format": provenance.memory_format,
            "measured": provenance.date,
            "took": f"{provenance.seconds:.0f} s",
            **provenance.software,
        },
    )


def _note(architecture: AnyArchitecture) -> str:
    if isinstance(architecture, DilatedArchitecture):
        return f"Field of view: {architecture.field_of_view()} pixels."
    # Below zero where the latency target decided against the likeliest operator.
    margins = [cell.margin for branch in architecture.branches for cell in branch.cells if cell.margin is not None]
    doubts = [margin for margin in margins if margin >= 0]
    rule = architecture.provenance.get("rule", "given")
    if not doubts:
        return f"rule: {rule}"
    return f"rule: {rule}; the closest choice of an operator was decided by {min(doubts):.3f} in probability"


def _subtitle(run: RunFolder) -> str:
    data = run.configuration["data"]
    preset = run.configuration.get("preset")
    where = "" if data.get("size") is None else " at {}x{}".format(*data["size"])
    return f"{'' if preset is None else f'{preset}, '}{data['dataset']}{where}"


def _reproduction(run: RunFolder, commands: tuple[str, ...]) -> Reproduction:
    environment: dict[str, Any] = run.environment
    versions = {name: environment.get(name) for name in ("dnas", "python", "torch", "torchvision", "numpy", "cuda")}
    return Reproduction(
        commands=commands or tuple(filter(None, [environment.get("command")])),
        seed=run.seed,
        versions={name: str(version) for name, version in versions.items() if version is not None},
        commit=environment.get("git_commit"),
        details={name: environment.get(name) for name in ("device", "platform", "threads", "date")},
    )
