"""Whether a search is collapsing: what its monitor tells after an epoch, read with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dnas.search.latency_target import LatencyTarget

SKIP_SHARE = 0.8
"""Of an architecture's cells, those whose likeliest operator is a skip."""

NARROW = 0.05
"""Mean expansion ratio, as a share of the way from the smallest ratio to the largest."""

DECIDED = 0.1
"""Mean entropy below which a kind of parameters is decided."""

EARLY = 0.5
"""Share of the search's epochs that count as early."""

FASTEST = 1.01
"""Latency of the derived network over the fastest of the space."""


def collapse_warnings(record: Mapping[str, Any], *, progress: float, target: LatencyTarget | None) -> dict[str, str]:
    """What looks collapsed in an epoch's record, by a name that stays while it lasts, each with its reason.

    ``progress`` is the share of the search's epochs that are done, pretraining not counted.
    """
    found: dict[str, str] = {}
    for name, share in record.get("skip_share", {}).items():
        if share > SKIP_SHARE:
            found[f"{name}.skips"] = f"{100 * share:.0f} % of its cells prefer to be skipped"
    smallest, largest = record.get("ratio_range", (0, 0))
    for name, mean in record.get("mean_ratio", {}).items():
        if largest > smallest and (mean - smallest) / (largest - smallest) < NARROW:
            found[f"{name}.ratios"] = f"its mean expansion ratio, {mean:.2f}, is at the smallest, {smallest:g}"
    for name, kinds in record.get("entropy", {}).items():
        for kind, entropy in kinds.items():
            has_choice = entropy > 0  # exactly 0 where there is nothing to decide
            if has_choice and entropy < DECIDED and progress <= EARLY:
                found[f"{name}.{kind}"] = (
                    f"its {kind} is decided (entropy {entropy:.3f}) after {100 * progress:.0f} % of the search"
                )
    derived = (record.get("derived") or {}).get("latency_ms")
    if target is not None and derived is not None and derived <= FASTEST * target.fastest_ms:
        wanted = target.target_ms is not None and target.target_ms <= 1.05 * target.fastest_ms
        if not wanted:
            found[f"{target.architecture}.latency"] = (
                f"derived now, it would be the fastest network of the space ({derived:.3f} ms)"
            )
    return {key: reason + _cause(record, key.split(".")[0]) for key, reason in found.items()}


def _cause(record: Mapping[str, Any], architecture: str) -> str:
    """The part that the latency has in the gradients of an architecture, where there is a latency term."""
    kinds = (record.get("latency_gradient") or {}).get(architecture)
    if not kinds:
        return ""
    shares = ", ".join(f"{kind} {100 * values['share']:.0f} %" for kind, values in kinds.items())
    return f"; share of the latency term in its gradients: {shares}"
