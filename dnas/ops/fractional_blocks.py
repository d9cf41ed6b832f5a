"""Which dilated layers make up a block, told from their names."""

from __future__ import annotations

from collections.abc import Iterable


def block_of(layer: str) -> str:
    """The name of a layer's block: ``blocks.0`` of ``blocks.0.dilated.branches.1``; a lone layer is its own block.

    Layers belong together if their names differ in the last part only.
    """
    return layer.rpartition(".")[0].removesuffix(".dilated.branches").removesuffix(".branches") or layer


def layers_by_block(layers: Iterable[str]) -> dict[str, list[str]]:
    """The layers of each block, both in the order of ``layers``."""
    blocks: dict[str, list[str]] = {}
    for layer in layers:
        blocks.setdefault(block_of(layer), []).append(layer)
    return blocks
