"""The content of a report: numbers, log records, graphs and arrays, independent of the search space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnas.report.blocks import Fact, Figure, Section

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class LatencySummary:
    """Summary of a latency table.

    ``input_size`` is (height, width) in pixels, ``entries`` the number of measured operators, ``slowest`` the slowest
    of them as (key, ms) in descending order, ``details`` further provenance in display order.
    """

    device: str
    backend: str
    precision: str
    entries: int
    input_size: tuple[int, int] | None = None
    slowest: Sequence[tuple[str, float]] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NetworkFigures:
    """One row of the comparison; figures that were not measured are ``None``.

    ``miou`` and ``pixel_accuracy`` are fractions (0 to 1), latencies (measured, predicted, and the target of the
    search) are in ms, ``multiply_adds`` are those of one image.
    """

    name: str
    miou: float | None = None
    pixel_accuracy: float | None = None
    latency_ms: float | None = None
    predicted_latency_ms: float | None = None
    target_ms: float | None = None
    parameters: int | None = None
    multiply_adds: int | None = None


@dataclass(frozen=True, kw_only=True)
class LatencyAgreement:
    """Predicted and measured latencies of whole networks (ms, same order), with the statistics of the check.

    ``mape`` is in percent. ``networks`` may name the points; those in ``marked`` are labelled with their name.
    """

    predicted_ms: Sequence[float]
    measured_ms: Sequence[float]
    pearson: float | None = None
    spearman: float | None = None
    mape: float | None = None
    networks: Sequence[str] = ()
    marked: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ClassLabels:
    """Names and colours (red, green, blue, 0 to 255) of the classes, by class index."""

    names: Sequence[str]
    colours: Sequence[tuple[int, int, int]]
    ignore: int = 255


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image (H, W, 3) uint8 with its prediction and, if known, ground truth: (H, W) class indices."""

    name: str
    image: NDArray[np.uint8]
    prediction: NDArray[np.integer[Any]]
    truth: NDArray[np.integer[Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Information to reproduce a run: ``commands`` in order, seed, versions, commit and more."""

    commands: Sequence[str] = ()
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that a report can show; sections without data are omitted.

    ``search`` holds the sections on the search, ``architectures`` the figures of the derived networks;
    ``retrain_records`` (by network name) are the records of a run's ``log.jsonl``; ``class_iou`` maps a network's name
    to its IoU per class (0 to 1, ``None`` for a class that does not occur); ``extra`` sections come before the
    reproduction.
    """

    title: str
    subtitle: str = ""
    summary: Sequence[Fact] = ()
    latency: LatencySummary | None = None
    search: Sequence[Section] = ()
    architectures: Sequence[Figure] = ()
    networks: Sequence[NetworkFigures] = ()
    retrain_records: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    agreement: LatencyAgreement | None = None
    labels: ClassLabels | None = None
    examples: Sequence[Example] = ()
    class_iou: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    extra: Sequence[Section] = ()
    reproduction: Reproduction | None = None
