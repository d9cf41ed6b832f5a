"""Detection of a collapsing search from the record of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dnas.search.latency_target import LatencyTarget

SKIP_SHARE = 0.8
"""Largest share of cells whose most likely operator is a skip."""

NARROW = 0.05
"""Smallest mean expansion ratio, normalised to 0 at the smallest ratio and 1 at the largest."""

DECIDED = 0.1
"""Mean entropy below which a kind of architecture parameters counts as decided."""

EARLY = 0.5
"""Share of the search's epochs in which it is too early to be decided."""

FASTEST = 1.01
"""Largest latency, relative to the fastest network of the space, that counts as fastest."""


def collapse_warnings(record: Mapping[str, Any], *, progress: float, target: LatencyTarget | None) -> dict[str, str]:
    """Signs of a collapse in an epoch's record: the reasons, by a name that is stable over epochs.

    ``progress`` is the finished share of the search's epochs, without pretraining.
    """
    found: dict[str, str] = {}
    for name, share in record.get("skip_share", {}).items():
        if share > SKIP_SHARE:
            found[f"{name}.skips"] = f"skip is the most likely operator of {100 * share:.0f} % of its cells"
    smallest, largest = record.get("ratio_range", (0, 0))
    for name, mean in record.get("mean_ratio", {}).items():
        if largest > smallest and (mean - smallest) / (largest - smallest) < NARROW:
            found[f"{name}.ratios"] = f"its mean expansion ratio is {mean:.2f}, near the smallest, {smallest:g}"
    for name, kinds in record.get("entropy", {}).items():
        for kind, entropy in kinds.items():
            has_choice = entropy > 0  # exactly 0 if there is nothing to decide
            if has_choice and entropy < DECIDED and progress <= EARLY:
                found[f"{name}.{kind}"] = (
                    f"its {kind} is decided (entropy {entropy:.3f}) after {100 * progress:.0f} % of the search"
                )
    derived = (record.get("derived") or {}).get("latency_ms")
    if target is not None and derived is not None and derived <= FASTEST * target.fastest_ms:
        intended = target.target_ms is not None and target.target_ms <= 1.05 * target.fastest_ms
        if not intended:
            found[f"{target.architecture}.latency"] = (
                f"the currently derived network is the fastest network of the space ({derived:.3f} ms)"
            )
    return {key: reason + _cause(record, key.split(".")[0]) for key, reason in found.items()}


def _cause(record: Mapping[str, Any], architecture: str) -> str:
    """The share of the latency in the gradients of an architecture, as text; empty without a latency term."""
    kinds = (record.get("latency_gradient") or {}).get(architecture)
    if not kinds:
        return ""
    shares = ", ".join(f"{kind} {100 * values['share']:.0f} %" for kind, values in kinds.items())
    return f"; share of the latency term in its gradients: {shares}"
