"""Rounding rules for searched dilation rates, and the blocks of layers that they apply to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

#: From the rates of all fractional layers, by name, to integer rates; see :func:`dnas.ops.round_dilations`.
RoundingRule = Callable[[Mapping[str, float]], Mapping[str, int]]

#: The numbers of dilated branches in RegSeg's blocks.
_BRANCH_COUNTS = (2, 4)


def nearest(rates: Mapping[str, float]) -> dict[str, int]:
    """Round each rate to the nearest integer, halves up."""
    return {name: math.floor(rate + 0.5) for name, rate in rates.items()}


def floor_and_ceil(rates: Mapping[str, float]) -> dict[str, int]:
    """RegSeg's rule: round the smaller half of a block's rates down and the larger half up.

    For two branches this is the paper's floor(min(r1, r2)), ceil(max(r1, r2)) (v3, section 3.4). The paper gives no
    rule for its blocks of four branches. This one keeps the two properties: the largest rate, which determines the
    field of view, never decreases, and the smallest, which preserves detail, never increases. Ties are resolved by the
    order of ``rates``.

    :func:`block_of` defines which layers form a block. In blocks of other sizes each rate is rounded to the nearest
    integer.
    """
    rounded: dict[str, int] = {}
    for names in layers_by_block(rates).values():
        if len(names) in _BRANCH_COUNTS:
            ascending, half = sorted(names, key=lambda name: rates[name]), len(names) // 2
            rounded |= {name: math.floor(rates[name]) for name in ascending[:half]}
            rounded |= {name: math.ceil(rates[name]) for name in ascending[half:]}
        else:
            rounded |= nearest({name: rates[name] for name in names})
    return {name: rounded[name] for name in rates}


def block_of(layer: str) -> str:
    """The name of the block that a layer belongs to: ``blocks.0`` for ``blocks.0.dilated.branches.1``.

    Layers whose names differ only in the last component form one block. A top-level layer is its own block.
    """
    return layer.rpartition(".")[0].removesuffix(".dilated.branches").removesuffix(".branches") or layer


def layers_by_block(layers: Iterable[str]) -> dict[str, list[str]]:
    """The layers of each block by the block's name; blocks and layers keep the order of ``layers``."""
    blocks: dict[str, list[str]] = {}
    for layer in layers:
        blocks.setdefault(block_of(layer), []).append(layer)
    return blocks
