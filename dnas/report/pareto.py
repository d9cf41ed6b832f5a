"""Pareto front and hypervolume of networks by latency and mIoU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Point = tuple[float, float]
"""Latency in ms, mIoU as a fraction."""


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other point dominates (faster or equal, and better), from fast to slow."""
    front: list[Point] = []
    for latency, miou in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or miou > front[-1][1]:
            front.append((latency, miou))
    return front


def hypervolume(points: Iterable[Point], reference_ms: float) -> float:
    """The share of the rectangle from 0 to ``reference_ms`` and from 0 to 100 % mIoU that the points dominate.

    Points slower than the reference do not count.
    """
    front: Sequence[Point] = [point for point in pareto_front(points) if point[0] < reference_ms]
    ends = [latency for latency, _ in front[1:]] + [reference_ms]
    area = sum((end - latency) * miou for (latency, miou), end in zip(front, ends, strict=True))
    return area / reference_ms if reference_ms > 0 else 0.0
