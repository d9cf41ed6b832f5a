"""Upgrade of search-space configurations written by earlier versions."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

RENAMED = {
    "target.input_size": "task.input_size",
    "target.num_classes": "task.num_classes",
    "target.target_ms": "latency_target_ms",
    "target.select_ms": "branch_selection.reference_ms",
    "target.select_exponent": "branch_selection.exponent",
    "search.join_passes": "search.batch_equal_passes",
}
"""Old dotted key -> new dotted key."""

REMOVED = {"search.passes_at_once": "the passes of a step run one after another"}
"""Removed dotted key -> reason."""


def upgraded(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A configuration in the current format, and a note for every changed key.

    Unknown keys are kept.
    """
    result: dict[str, Any] = copy.deepcopy(dict(values))
    notes = []
    for old, new in RENAMED.items():
        found, value = _take(result, old)
        if found:
            _put(result, new, value)
            notes.append(f"{old} was renamed to {new}")
    for old, why in REMOVED.items():
        if _take(result, old)[0]:
            notes.append(f"{old} is ignored: {why}")
    if result.get("target") == {}:
        del result["target"]
    return result, notes


def upgraded_overrides(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """``KEY=VALUE`` overrides with current keys, and a note for every changed key."""
    result, notes = [], []
    for override in overrides:
        key, equals, value = override.partition("=")
        name = key.strip()
        if name in REMOVED:
            notes.append(f"{name} is ignored: {REMOVED[name]}")
            continue
        if name in RENAMED:
            notes.append(f"{name} was renamed to {RENAMED[name]}")
        result.append(f"{RENAMED.get(name, key)}{equals}{value}")
    return result, notes


def _take(values: dict[str, Any], key: str) -> tuple[bool, Any]:
    """Remove a dotted key; returns whether it existed, and its value."""
    *outer, last = key.split(".")
    inner: Any = values
    for name in outer:
        inner = inner.get(name) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or last not in inner:
        return False, None
    return True, inner.pop(last)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *outer, last = key.split(".")
    inner = values
    for name in outer:
        inner = inner.setdefault(name, {})
    inner.setdefault(last, value)
