"""Gathering the content of a report from run folders."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from derive import TABLE, Architecture, Deriver, architecture_from
from dnas.config import parse_config
from dnas.data import DataConfig, SegmentationDataset, eval_transform, match_classes, open_dataset
from dnas.errors import UserError
from dnas.export import benchmark
from dnas.input_channels import as_rgb
from dnas.latency import Effort, LatencyTable
from dnas.profile import count_multiply_adds, count_parameters
from dnas.progress import Progress
from dnas.report import (
    ClassLabels,
    Example,
    Figure,
    LatencySummary,
    NetworkFigures,
    ReportData,
    Reproduction,
    Section,
    agreement_scatter,
    drawn,
    examples_sheet,
    headline,
    ranking_section,
    retraining_curves,
    save_png,
)
from dnas.runs import RunFolder
from dnas.runs.configurations import retrain_configuration
from dnas.training import Evaluation, evaluate
from dnas.workflows.checking import CheckResult, check_table
from dnas.workflows.derivation import deriver_of_run
from dnas.workflows.measuring import not_of_this_machine
from dnas.workflows.networks import LoadedNetwork, load_network
from dnas.workflows.ranking import rank_networks, read_ground_truth, rows_of_search


def gather_report(
    search_run: Path | None,
    student: Path | None,
    teacher: Path | None,
    *,
    networks: int = 12,
    examples: int = 4,
    ground_truth: Path | None = None,
    progress: Progress | None = None,
    title: str = "dnas",
    commands: tuple[str, ...] = (),
) -> ReportData:
    """The content of a report on the given runs; at least one must be given.

    ``ground_truth``: rows of trained networks (:func:`~dnas.workflows.ranking.read_ground_truth`) that the weights of
    the search are to rank. This evaluates the networks on the CPU, and measures their latencies on the device of the
    table or on the CPU.
    """
    if search_run is None and student is None and teacher is None:
        raise UserError("report: give at least one of --search, --student and --teacher")
    if ground_truth is not None and search_run is None:
        raise UserError(f"{ground_truth}: a ground truth is for the weights of a search; give --search")
    known = None
    if ground_truth is not None and search_run is not None:
        known = rows_of_search(read_ground_truth(ground_truth), RunFolder.open(search_run, "search"))
    loaded = {name: load_network(str(path)) for name, path in (("student", student), ("teacher", teacher)) if path}
    search, deriver = (None, None) if search_run is None else deriver_of_run(search_run)
    table = _table_of(search_run)
    architectures = {name: a for name, found in loaded.items() if (a := _architecture_of(found)) is not None}
    check, elsewhere, predicted = None, None, dict[str, float]()
    if deriver is not None and table is not None:
        predicted = _predicted(deriver, table, architectures)
        elsewhere = not_of_this_machine(table, deriver.space.input_size)
        if networks >= 2 and elsewhere is None:
            derived = {name: architectures[name] for name in predicted}
            effort = Effort(rounds=5, time_per_entry=0.3)
            check = check_table(table, deriver.space, networks, derived=derived, effort=effort)
    if elsewhere is not None and progress is not None:
        progress.message(f"latencies are predicted and not measured, as this is not the table's machine: {elsewhere}")
    scores = {name: _evaluate(found) for name, found in loaded.items()}
    first = next(iter(loaded.values()), None)
    latencies = {
        name: None if elsewhere is not None else _measured(name, found, table, check) for name, found in loaded.items()
    }
    figures = [
        _figures(name, found, scores[name], predicted.get(name), latencies[name]) for name, found in loaded.items()
    ]
    reference = search or (first.run if first else None)
    assert reference is not None
    return ReportData(
        title=title,
        subtitle=_subtitle(reference),
        latency=None if table is None else _summary(table, elsewhere),
        search=[
            *([] if search is None or deriver is None else deriver.search_sections(search)),
            *([] if known is None or search_run is None else [_ranking(search_run, known, progress)]),
        ],
        architectures=[_drawn(name, architecture) for name, architecture in architectures.items()],
        summary=headline(figures[0]) if figures else (),
        networks=figures,
        retrain_records={name: found.run.records() for name, found in loaded.items() if found.run},
        agreement=None if check is None else check.for_report(),
        labels=None
        if first is None or first.labels is None
        else ClassLabels(names=first.labels.names, colours=first.labels.colours),
        examples=[] if first is None else _examples(first, examples),
        class_iou={name: score.iou for name, score in scores.items()},
        reproduction=_reproduction(reference, commands),
    )


def write_pictures(
    data: ReportData, folder: Path, search_run: Path | None = None, networks: tuple[Path | None, ...] = ()
) -> None:
    """Write the figures of a report as PNG files.

    ``search_run`` and ``networks`` are the run folders of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if search_run is not None:
        run, deriver = deriver_of_run(search_run)
        for name, drawing in deriver.search_drawings(run).items():
            save_png(drawing, folder / f"{name}.png")
    if data.retrain_records:
        save_png(retraining_curves(data.retrain_records), folder / "retraining.png")
    for name, path in zip(("student", "teacher"), networks, strict=False):
        architecture = None if path is None else _architecture_of(load_network(str(path)))
        if architecture is not None:
            save_png(architecture.drawing(name), folder / f"architecture_{name}.png")
    if data.agreement is not None:
        save_png(agreement_scatter(data.agreement), folder / "latency_check.png")
    if data.examples and data.labels is not None:
        save_png(examples_sheet(data.examples, data.labels), folder / "examples.png")


def _ranking(search_run: Path, rows: Sequence[Mapping[str, Any]], progress: Progress | None) -> Section:
    found = rank_networks(search_run, rows, progress=progress)
    bands = {"all": found.overall, **{f"around {middle:.1f} ms": one for middle, one in found.bands.items()}}
    return ranking_section(found.points, [(name, one.networks, one.tau, one.rho) for name, one in bands.items()])


def _drawn(name: str, architecture: Architecture) -> Figure:
    description = f"Graph of the derived {name} with {architecture.graph().number_of_nodes()} nodes"
    return drawn(architecture.drawing(), architecture.caption(name), description)


def _table_of(search_run: Path | None) -> LatencyTable | None:
    path = None if search_run is None else search_run / TABLE
    return None if path is None or not path.exists() else LatencyTable.load(path)


def _architecture_of(found: LoadedNetwork) -> Architecture | None:
    """The architecture of a retrained network; None for a published network."""
    described = retrain_configuration(found.run).network.architecture if found.run else None
    return None if described is None else architecture_from(described, found.name)


def _predicted(
    deriver: Deriver[Any], table: LatencyTable, architectures: Mapping[str, Architecture]
) -> dict[str, float]:
    """The predicted latencies in ms of those architectures that are in the search space."""
    found = {}
    for name, architecture in architectures.items():
        with contextlib.suppress(UserError):
            found[name] = deriver.predict_ms(architecture, table)
    return found


def _measured(name: str, found: LoadedNetwork, table: LatencyTable | None, check: CheckResult | None) -> float:
    """The latency of a network in ms, as the check has measured it, else on the CPU."""
    if check is not None and name in check.names:
        return check.measured[check.names.index(name)]
    assert found.input_size is not None
    threads = None if table is None else table.provenance.threads
    latency: float = benchmark(found.network, found.input_size, threads=threads, seconds=1.0)["latency_ms"]["median"]
    return latency


def _evaluate(found: LoadedNetwork) -> Evaluation:
    assert found.augmentation is not None
    return evaluate(found.network, _validation_data(found), found.augmentation, device="cpu")


def _validation_data(found: LoadedNetwork) -> SegmentationDataset:
    assert found.run is not None
    source = str(found.run.path / "configuration.yaml")
    data = open_dataset(parse_config(DataConfig, retrain_configuration(found.run).data, source), "val")
    return data if found.labels is None else match_classes(data, found.labels.names, str(found.run.path))


def _figures(
    name: str, found: LoadedNetwork, score: Evaluation, predicted_ms: float | None, measured_ms: float | None
) -> NetworkFigures:
    assert found.input_size is not None
    target = None
    architecture = _architecture_of(found)
    if architecture is not None and "target_ms" in architecture.provenance:
        target = _number(architecture.provenance["target_ms"])
    return NetworkFigures(
        name=name,
        miou=score.miou,
        pixel_accuracy=score.pixel_accuracy,
        latency_ms=measured_ms,
        predicted_latency_ms=predicted_ms,
        target_ms=target,
        parameters=count_parameters(found.network),
        multiply_adds=count_multiply_adds(found.network, found.input_size),
    )


def _examples(found: LoadedNetwork, count: int) -> list[Example]:
    """Predictions on evenly spaced validation images."""
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
                image=as_rgb(image.as_subclass(torch.Tensor)).permute(1, 2, 0).numpy().astype(np.uint8),
                prediction=logits[0].argmax(0).numpy(),
                truth=labels.numpy(),
            )
        )
    return examples


def _summary(table: LatencyTable, elsewhere: str | None) -> LatencySummary:
    """The table; ``elsewhere``: why it could not be checked on this machine."""
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
            **({} if elsewhere is None else {"not checked here": elsewhere}),
        },
    )


def _subtitle(run: RunFolder) -> str:
    source = str(run.path / "configuration.yaml")
    data = parse_config(DataConfig, run.configuration.get("data", {}), source)
    preset = run.configuration.get("preset")
    where = "" if data.size is None else " at {}x{}".format(*data.size)
    return f"{'' if preset is None else f'{preset}, '}{data.dataset}{where}"


def _number(text: str) -> float | None:
    """The positive number in a text, None if there is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


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
