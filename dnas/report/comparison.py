"""The sections of a report that compares several runs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dnas.report.blocks import Fact, Marked, Section, Table
from dnas.report.comparison_charts import compared_curves, pareto_chart
from dnas.report.data import Record
from dnas.report.drawn import drawn
from dnas.report.numbers import MISSING, format_ms, percent
from dnas.report.pareto import hypervolume, pareto_front

_MARGIN = 1.1
"""The reference latency of the hypervolume, relative to that of the slowest network."""


@dataclass(frozen=True, kw_only=True)
class ComparedNetwork:
    """A retrained network.

    group: what it has in common with the networks of other seeds. front: name of the Pareto front that it belongs to.
    latency_ms is measured or predicted; miou is a fraction.
    """

    name: str
    group: str
    front: str = ""
    miou: float | None = None
    latency_ms: float | None = None
    measured: bool = False


@dataclass(frozen=True, kw_only=True)
class ComparedCurve:
    """The log of a search or a training: ``kind`` selects the panel, ``group`` the line (with a band over seeds)."""

    kind: str
    group: str
    records: Sequence[Record]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a kind of job, over all attempts."""

    kind: str
    jobs: int
    attempts: int
    core_hours: float
    gpu_hours: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that is compared. ``configurations``: flat configurations (dotted keys) by group."""

    networks: Sequence[ComparedNetwork] = ()
    curves: Sequence[ComparedCurve] = ()
    configurations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    costs: Sequence[Cost] = ()


@dataclass(frozen=True)
class Group:
    """Mean and spread of the networks of a group over seeds; spreads are 0 for one network."""

    name: str
    front: str
    count: int
    miou: float
    miou_spread: float
    latency_ms: float
    latency_spread: float
    measured: bool


def groups_of(networks: Sequence[ComparedNetwork]) -> list[Group]:
    """The groups of the networks with known mIoU and latency; measured ones only, if there are any."""
    known = [one for one in networks if one.miou is not None and one.latency_ms is not None]
    chosen = [one for one in known if one.measured] or known
    found: dict[tuple[str, str], list[ComparedNetwork]] = {}
    for network in chosen:
        found.setdefault((network.front, network.group), []).append(network)
    groups = []
    for (front, name), members in found.items():
        mious = [one.miou for one in members if one.miou is not None]
        latencies = [one.latency_ms for one in members if one.latency_ms is not None]
        figures = (*_mean_and_spread(mious), *_mean_and_spread(latencies))
        groups.append(Group(name, front, len(members), *figures, members[0].measured))
    return sorted(groups, key=lambda group: group.latency_ms)


def hypervolumes(groups: Sequence[Group]) -> tuple[float, dict[str, float]]:
    """The reference latency in ms, and the hypervolume of every front."""
    reference = _MARGIN * max(group.latency_ms for group in groups)
    by_front: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        by_front.setdefault(group.front, []).append((group.latency_ms, group.miou))
    return reference, {front: hypervolume(points, reference) for front, points in by_front.items()}


def comparison_sections(comparison: Comparison) -> list[Section]:
    """The sections with content, results first."""
    sections = [
        _front(comparison.networks),
        _seeds(comparison.networks),
        _curves(comparison.curves),
        _differences(comparison.configurations),
        _costs(comparison.costs),
    ]
    return [section for section in sections if section is not None]


def comparison_facts(comparison: Comparison) -> tuple[Fact, ...]:
    """The numbers of the page's header."""
    facts = [Fact("Networks", str(len(comparison.networks)))]
    groups = groups_of(comparison.networks)
    if groups:
        best = max(groups, key=lambda group: group.miou)
        facts.append(Fact("Best mIoU", percent(best.miou), "%", best.name))
        reference, found = hypervolumes(groups)
        front = max(found, key=found.__getitem__)
        facts.append(Fact("Hypervolume", f"{found[front]:.3f}", "", f"{front} up to {reference:.3g} ms".strip()))
    if comparison.costs:
        facts.append(Fact("Core hours", f"{sum(cost.core_hours for cost in comparison.costs):.2f}"))
        gpu = sum(cost.gpu_hours for cost in comparison.costs)
        facts += [Fact("GPU hours", f"{gpu:.2f}")] if gpu else []
    return tuple(facts)


def _front(networks: Sequence[ComparedNetwork]) -> Section | None:
    groups = groups_of(networks)
    if not groups:
        return None
    reference, volumes = hypervolumes(groups)
    kind = "measured" if groups[0].measured else "predicted"
    rows = []
    for front, volume in volumes.items():
        points = {(group.latency_ms, group.miou): group for group in groups if group.front == front}
        best = [points[point].name for point in pareto_front(points)]
        rows.append((front or "all", str(len(points)), f"{volume:.4f}", "; ".join(best)))
    table = Table(
        header=("front", "points", "hypervolume", "on the front, from fast to slow"),
        rows=rows,
        numeric=(1, 2),
        caption=f"Hypervolume: the share of the rectangle from 0 to {reference:.3g} ms and from 0 to 100 % mIoU that "
        "the points dominate.",
    )
    chart = drawn(
        pareto_chart(networks, groups),
        f"Each point is the mean over the seeds of a setting, with the standard deviation; small points are single "
        f"networks. The line is the Pareto front. Latencies are {kind}.",
        "mIoU of the networks against their latency",
    )
    return Section(title="Pareto front", lead=f"mIoU against {kind} latency.", blocks=[chart, table])


def _seeds(networks: Sequence[ComparedNetwork]) -> Section | None:
    if not networks:
        return None
    rows = []
    groups = {(one.front, one.group): None for one in networks}
    for front, name in groups:
        members = [one for one in networks if (one.front, one.group) == (front, name)]
        mious = [100 * one.miou for one in members if one.miou is not None]
        latencies = [one.latency_ms for one in members if one.latency_ms is not None]
        kinds = sorted({"measured" if one.measured else "predicted" for one in members if one.latency_ms is not None})
        rows.append(
            (
                name or "all",
                front or "all",
                str(len(members)),
                _spread(mious, 1),
                _spread(latencies, 2),
                ", ".join(kinds),
            )
        )
    table = Table(
        header=("setting", "front", "seeds", "mIoU (%)", "latency (ms)", "latency is"),
        rows=rows,
        numeric=(2, 3, 4),
        caption="Mean ± standard deviation over the seeds.",
    )
    return Section(title="Seeds", lead="Mean and spread over the seeds of every setting.", blocks=[table])


def _curves(curves: Sequence[ComparedCurve]) -> Section | None:
    if not curves:
        return None
    chart = drawn(
        compared_curves([(curve.kind, curve.group, curve.records) for curve in curves]),
        "One line for each setting: the mean over its seeds, with a band from the lowest to the highest.",
        "mIoU over the epochs of searches and trainings",
    )
    return Section(title="Curves", lead="Validation mIoU over the epochs, side by side.", blocks=[chart])


def _differences(configurations: Mapping[str, Mapping[str, Any]]) -> Section | None:
    if len(configurations) < 2:
        return None
    keys = dict.fromkeys(key for values in configurations.values() for key in values)
    rows: list[list[str | Marked]] = []
    for key in keys:
        texts = [_text(values.get(key, MISSING)) for values in configurations.values()]
        usual, _ = Counter(texts).most_common(1)[0]
        if len(set(texts)) > 1:
            rows.append([key, *(text if text == usual else Marked(text) for text in texts)])
    lead = "The keys in which the settings differ; values that differ from the most frequent one are highlighted."
    if not rows:
        return Section(title="Configuration", lead="All settings have the same configuration.", blocks=[])
    table = Table(header=("key", *configurations), rows=rows)
    return Section(title="Configuration", lead=lead, blocks=[table])


def _costs(costs: Sequence[Cost]) -> Section | None:
    if not costs:
        return None
    total = Cost(
        kind="all",
        jobs=sum(cost.jobs for cost in costs),
        attempts=sum(cost.attempts for cost in costs),
        core_hours=sum(cost.core_hours for cost in costs),
        gpu_hours=sum(cost.gpu_hours for cost in costs),
    )
    rows = [
        (cost.kind, str(cost.jobs), str(cost.attempts), f"{cost.core_hours:.3f}", f"{cost.gpu_hours:.3f}")
        for cost in (*costs, total)
    ]
    table = Table(header=("job", "jobs", "attempts", "core hours", "GPU hours"), rows=rows, numeric=(1, 2, 3, 4))
    return Section(
        title="Cost", lead="Time of all finished attempts, times the cores or GPUs of the job.", blocks=[table]
    )


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return MISSING
    mean, spread = _mean_and_spread(values)
    return f"{mean:.{digits}f} ± {spread:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else format_ms(None) if value is None else str(value)
