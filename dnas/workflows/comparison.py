"""Gathering what a report on several runs, or on a study, compares."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnas.errors import UserError
from dnas.report import ReportData
from dnas.report.comparison import (
    ComparedCurve,
    ComparedNetwork,
    Comparison,
    Cost,
    comparison_facts,
    comparison_sections,
)
from dnas.runs import RunFolder
from dnas.workflows.study.graph import Job
from dnas.workflows.study.job import result_of
from dnas.workflows.study.status import STUDY_FILE, JobState, open_study, states

_NOT_COMPARED = ("network.architecture", "teacher", "inherit", "seed")
"""Keys of a run's configuration that follow from other runs."""


def gather_comparison(folders: Sequence[Path], *, by: str | None = None) -> ReportData:
    """The content of a report that compares studies and single runs.

    ``by``: the varied value that distinguishes the Pareto fronts; by default there is one for each study.
    """
    found = [
        _study(folder, by, several=len(folders) > 1) if (folder / STUDY_FILE).is_file() else _single(folder)
        for folder in folders
    ]
    names = {network.name for one in found for network in one.networks}
    if not any(one.networks or one.curves for one in found):
        raise UserError(f"{', '.join(map(str, folders))}: no finished epoch of a search or a training yet")
    configurations = {group: values for one in found for group, values in one.configurations.items()}
    comparison = Comparison(
        networks=[network for one in found for network in one.networks],
        curves=[curve for one in found for curve in one.curves],
        configurations=configurations,
        costs=[cost for one in found for cost in one.costs],
    )
    title = folders[0].resolve().name if len(folders) == 1 else f"{len(folders)} runs"
    return ReportData(
        title=title,
        subtitle=f"{len(names)} networks, {len(comparison.curves)} searches and trainings",
        summary=comparison_facts(comparison),
        extra=comparison_sections(comparison),
    )


def _single(folder: Path) -> Comparison:
    """One run folder, which is a group of its own."""
    run, name = RunFolder.open(folder), folder.resolve().name
    records = run.records()
    networks = [_network(name, name, "", run, None, None)] if run.kind == "retrain" else []
    hours = sum(float(record["seconds"]) for record in run.records("step")) / 3600
    on_gpu = run.environment.get("cuda") is not None
    cost = Cost(
        kind=run.kind,
        jobs=1,
        attempts=1 + len(run.environment.get("resumed", [])),
        core_hours=hours * int(run.environment.get("threads", 1)),
        gpu_hours=hours if on_gpu else 0.0,
    )
    return Comparison(
        networks=networks,
        curves=[ComparedCurve(kind=run.kind, group=name, records=records)],
        configurations={name: dict(_flat(run.configuration))},
        costs=[cost],
    )


def _study(folder: Path, by: str | None, *, several: bool) -> Comparison:
    _, jobs = open_study(folder)
    varied = list(dict.fromkeys(name for job in jobs for name in job.values))
    if by is not None and by not in varied:
        raise UserError(f"--by {by}: {folder} varies {', '.join(varied) or 'nothing'}")
    label = folder.resolve().name if several else ""
    state = {one.job.name: one for one in states(jobs, folder)}
    trained = [job for job in jobs if job.command == "retrain" and _has_epoch(state[job.name])]
    searched = [job for job in jobs if job.command == "search" and _has_epoch(state[job.name])]
    final = [job for job in trained if not _is_teacher(job, jobs)] or trained
    networks: list[ComparedNetwork] = []
    configurations: dict[str, dict[str, Any]] = {}
    for job in final:
        group = _group(job, label)
        run = RunFolder.open(job.folder(folder))
        front = job.values.get(by, "") if by is not None else label
        latency = _measured(job, jobs, folder)
        networks.append(_network(job.name, group, front, run, latency, _score(job, jobs, folder)))
        configurations.setdefault(group, dict(_configuration(job, jobs, folder)))
    if not final:
        configurations = {
            _group(job, label): dict(_flat(RunFolder.open(job.folder(folder)).configuration)) for job in searched
        }
    curves = [
        ComparedCurve(kind=job.kind, group=_group(job, label), records=RunFolder.open(job.folder(folder)).records())
        for job in (*searched, *trained)
    ]
    return Comparison(
        networks=networks, curves=curves, configurations=configurations, costs=_costs(jobs, state, folder)
    )


def _network(
    name: str, group: str, front: str, run: RunFolder, latency_ms: float | None, miou: float | None
) -> ComparedNetwork:
    """The figures of a training; by default the latency in its architecture, and the best mIoU in its log."""
    described = run.configuration.get("network", {}).get("architecture") or {}
    noted = described.get("provenance", {})
    measured = latency_ms if latency_ms is not None else _number(noted.get("measured_ms"))
    predicted = _number(noted.get("predicted_ms"))
    logged = [record["miou"] for record in run.records("epoch") if record.get("miou") is not None]
    return ComparedNetwork(
        name=name,
        group=group,
        front=front,
        miou=miou if miou is not None else max(logged, default=None),
        latency_ms=predicted if measured is None else measured,
        measured=measured is not None,
    )


def _number(text: Any) -> float | None:
    return None if text is None else float(text)


def _has_epoch(state: JobState) -> bool:
    return bool(state.epochs)


def _is_teacher(job: Job, jobs: Sequence[Job]) -> bool:
    """Whether another training distils from this one."""
    return any(job.name in other.after for other in jobs if other.command == "retrain")


def _group(job: Job, study: str) -> str:
    """The varied values without seeds."""
    values = ", ".join(f"{name} {value}" for name, value in job.values.items() if not re.search("seed", name))
    return " ".join(filter(None, [study, values]))


def _measured(job: Job, jobs: Sequence[Job], study: Path) -> float | None:
    """The latency that a job of ``dnas benchmark`` measured for a training, or for a file exported from it."""
    exported = [one.name for one in jobs if one.command == "export" and job.name in one.after]
    for other in jobs:
        if other.command == "benchmark" and {job.name, *exported} & set(other.after):
            result = result_of(other.folder(study))
            if "latency_ms" in result:
                return float(result["latency_ms"]["median"])
    return None


def _score(job: Job, jobs: Sequence[Job], study: Path) -> float | None:
    """The mIoU that a job of ``dnas evaluate`` found for a training."""
    for other in jobs:
        if other.command == "evaluate" and job.name in other.after:
            result = result_of(other.folder(study))
            if "miou" in result:
                return float(result["miou"])
    return None


def _configuration(job: Job, jobs: Sequence[Job], study: Path) -> Iterator[tuple[str, Any]]:
    """The flat configurations of a training and of the searches before it."""
    by_name = {one.name: one for one in jobs}
    todo, seen = [job.name], dict[str, None]()
    while todo:
        name = todo.pop(0)
        if name not in seen:
            seen[name] = None
            todo += by_name[name].after
    for name in reversed(list(seen)):
        one = by_name[name]
        if one.command in ("search", "retrain") and (one.folder(study) / "environment.json").exists():
            for key, value in _flat(RunFolder.open(one.folder(study)).configuration):
                yield f"{one.kind}: {key}", value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A configuration with dotted keys."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in _NOT_COMPARED:
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _costs(jobs: Sequence[Job], state: Mapping[str, JobState], study: Path) -> list[Cost]:
    costs = []
    for kind in dict.fromkeys(job.kind for job in jobs):
        members = [state[job.name] for job in jobs if job.kind == kind and state[job.name].attempts]
        if members:
            hours = [one.seconds / 3600 for one in members]
            costs.append(
                Cost(
                    kind=kind,
                    jobs=len(members),
                    attempts=sum(one.attempts for one in members),
                    core_hours=sum(hour * one.job.cores for hour, one in zip(hours, members, strict=True)),
                    gpu_hours=sum(hour * _gpus(one.job, study) for hour, one in zip(hours, members, strict=True)),
                )
            )
    return costs


def _gpus(job: Job, study: Path) -> int:
    """The number of GPUs that a job had."""
    if job.gpus is not None:
        return job.gpus
    folder = job.folder(study)
    on_gpu = (folder / "environment.json").exists() and RunFolder.open(folder).environment.get("cuda") is not None
    return int(on_gpu)
