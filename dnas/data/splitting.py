"""Choosing items of a dataset: random halves and parts, and evenly spaced ones."""

from __future__ import annotations

import torch

from dnas.data.seeding import mix_seed
from dnas.errors import UserError


def split_halves(count: int, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A random split of ``range(count)`` into two halves, each in ascending order; the first has the odd image.

    The bilevel search trains the weights on one half and the architecture parameters on the other (FasterSeg,
    Appendix F).
    """
    if count < 2:
        raise UserError(f"given {count} images, expected at least 2 to split them into halves")
    order = permutation(count, mix_seed("halves", seed))
    middle = (count + 1) // 2
    return tuple(sorted(order[:middle])), tuple(sorted(order[middle:]))


def split_parts(count: int, seed: int, held_out: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two disjoint parts of ``range(count)``, drawn by ``seed``, each in ascending order.

    The second has the share ``held_out``, and both have at least one image; fewer than 2 are a :class:`UserError`.
    """
    if count < 2:
        raise UserError(f"given {count} images, expected at least 2 to hold some of them out")
    order = permutation(count, mix_seed("held out", seed))
    kept = min(count - 1, max(1, round(count * (1 - held_out))))
    return tuple(sorted(order[:kept])), tuple(sorted(order[kept:]))


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """``wanted`` evenly spaced indices below ``count``."""
    return [i * count // wanted for i in range(wanted)]


def permutation(count: int, seed: int) -> list[int]:
    """The numbers below ``count`` in an order that depends on nothing but ``seed``."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
