"""Operator signatures of the parts of multi-branch networks, and the modules that they describe."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from dnas.input_channels import RGB, with_input_channels
from dnas.latency.spec import InventoryItem, OperatorSpec
from dnas.networks.multi_branch import Fuse, Head, MultiBranchSpec, Stem, scales_below, share_prefixes
from dnas.ops import make_operator


def map_size(image_size: tuple[int, int], scale: int) -> tuple[int, int]:
    """(height, width) of the maps at a downsampling rate: those of the image, divided and rounded up."""
    height, width = image_size
    return -(-height // scale), -(-width // scale)


def stem_signature(ratio: int, image_size: tuple[int, int], channels: int = RGB) -> OperatorSpec:
    """Signature of the stem at an expansion ratio, for images of ``channels`` channels."""
    return OperatorSpec("stem", ((channels, *image_size),), 8 * ratio, stride=8)


def cell_signature(
    operator: str, in_channels: int, channels: int, in_scale: int, stride: int, image_size: tuple[int, int]
) -> OperatorSpec:
    """Signature of an operator of a cell with input at ``in_scale``."""
    return OperatorSpec(operator, ((in_channels, *map_size(image_size, in_scale)),), channels, stride)


def fuse_signature(skip_channels: int, scale: int, ratio: int, image_size: tuple[int, int]) -> OperatorSpec:
    """Signature of a branch's fusion at ``scale``: maps at twice ``scale`` with ``skip_channels`` skip channels."""
    skip = (skip_channels, *map_size(image_size, scale))
    coarse = (2 * scale * ratio, *map_size(image_size, 2 * scale))
    return OperatorSpec("fuse", (skip, coarse), scale * ratio)


def head_signature(ratio: int, branches: int, num_classes: int, image_size: tuple[int, int]) -> OperatorSpec:
    """Signature of the head of ``branches`` branches, including the upsampling of the logits to the image size."""
    shape = (8 * ratio, *map_size(image_size, 8))
    extras = (("image_height", image_size[0]), ("image_width", image_size[1]))
    return OperatorSpec("head", (shape,) * branches, num_classes, extras=extras)


def network_signatures(
    spec: MultiBranchSpec, num_classes: int, image_size: tuple[int, int], channels: int = RGB
) -> Iterator[OperatorSpec]:
    """All operators of a network, shared cells once; its latency is the sum of their latencies."""
    ratio = spec.end_ratio
    yield stem_signature(ratio, image_size, channels)
    nodes, _ = share_prefixes(spec)
    for node in nodes:
        cell = node.cell
        yield cell_signature(
            cell.operator, cell.in_channels, cell.channels, cell.out_scale // cell.stride, cell.stride, image_size
        )
    for branch in spec.branches:
        for scale in scales_below(branch.scale):
            yield fuse_signature(branch.skip_channels(scale, 8 * ratio), scale, ratio, image_size)
    yield head_signature(ratio, len(spec.branches), num_classes, image_size)


def inventory_item(spec: OperatorSpec) -> InventoryItem:
    """A signature with a function that builds its module."""
    return InventoryItem(spec, partial(build_part, spec))


def build_part(spec: OperatorSpec) -> nn.Module:
    """Build the module that a signature describes."""
    channels = [shape[0] for shape in spec.inputs]
    if spec.operator == "stem":
        return with_input_channels(Stem(spec.out_channels // 8), channels[0])
    if spec.operator == "fuse":
        return Fuse(channels[1], channels[0], spec.out_channels)
    if spec.operator == "head":
        extras = dict(spec.extras)
        head = Head(channels[0], len(channels), spec.out_channels)
        return _HeadAt(head, (extras["image_height"], extras["image_width"]))
    return make_operator(spec.operator, channels[0], spec.out_channels, spec.stride)


class _HeadAt(nn.Module):
    """A head for a fixed image size that takes the branches as separate arguments."""

    def __init__(self, head: Head, size: tuple[int, int]) -> None:
        super().__init__()
        self.head, self.size = head, size

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps (N, C, H/8, W/8), one per branch -> logits (N, classes, H, W)."""
        logits: Tensor = self.head(maps, self.size)
        return logits
