"""Options near a latency target by single changes, for spaces that are too large for the integer programme."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

LEAST_GAIN_MS = 1e-9


def walk_to_target(
    latency: Callable[[Mapping[str, int]], float],
    scores: Mapping[str, Sequence[float]],
    options: Mapping[str, int],
    target_ms: float,
    tolerance: float,
) -> dict[str, int]:
    """Change one choice after another until the latency is within ``tolerance`` (a share) of the target.

    Every change brings the latency nearer to the target, and among these it loses least score for its gain. ``scores``:
    of every choice's options, such as log-probabilities. Returns the options where no further change helps, at the
    latest.
    """
    current = dict(options)
    ms = latency(current)
    while abs(ms / target_ms - 1) > tolerance:
        changes = []
        for name, values in scores.items():
            for index, score in enumerate(values):
                if index == current[name]:
                    continue
                after = latency({**current, name: index})
                gain = abs(ms - target_ms) - abs(after - target_ms)
                if gain > LEAST_GAIN_MS:
                    changes.append(((values[current[name]] - score) / gain, name, index, after))
        if not changes:
            break
        _, name, index, ms = min(changes)
        current[name] = index
    return current
