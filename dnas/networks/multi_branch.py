"""The discrete multi-branch network that FasterSeg derives: stem, branches of cells with shared prefixes, fusing head.

The head follows FasterSeg, Appendix A: on the upsampling path, a branch is reduced by a 1x1 convolution, upsampled by
two, and fused by a 3x3 convolution with the last map of the same branch at that scale. At scale 8 the branches are
concatenated for the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dnas.ops import ConvNormAct, fit_channels, make_operator, resize


@dataclass(frozen=True)
class CellSpec:
    """One cell: ``operator`` from ``in_channels`` to ``channels``; ``out_scale`` is the output's downsampling rate."""

    operator: str
    out_scale: int
    in_channels: int
    channels: int
    stride: int = 1


@dataclass(frozen=True)
class BranchSpec:
    """One branch: its cells from the stem on. The head reads ``channels`` channels of its last map at 1/``scale``."""

    scale: int
    channels: int
    cells: tuple[CellSpec, ...]

    def skip_channels(self, scale: int, stem_channels: int) -> int:
        """Channels of the map at ``scale`` that the next, coarser cell of this branch reads."""
        return next((cell.in_channels for cell in self.cells if cell.out_scale > scale), stem_channels)


@dataclass(frozen=True)
class MultiBranchSpec:
    """A network. ``end_ratio`` is the ratio of stem and head, which have ``end_ratio * scale`` channels."""

    end_ratio: int
    branches: tuple[BranchSpec, ...]


class Stem(nn.Sequential):
    """Five 3x3 convolutions, the first, second and fourth of stride two: (N, 3, H, W) -> (N, 8 * ratio, H/8, W/8).

    Appendix A. The channels (4, 8, 8 times the ratio) are those of the published latency table's stem entries.
    """

    def __init__(self, ratio: int) -> None:
        half, full = 4 * ratio, 8 * ratio
        super().__init__(
            ConvNormAct(3, half, stride=2),
            ConvNormAct(half, full, stride=2),
            ConvNormAct(full, full),
            ConvNormAct(full, full, stride=2),
            ConvNormAct(full, full),
        )


class Fuse(nn.Module):
    """One upsampling step: reduce ``coarse``, upsample it to the size of ``skip``, concatenate, fuse (Appendix A)."""

    def __init__(self, coarse_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.coarse_channels, self.skip_channels = coarse_channels, skip_channels
        self.reduce = ConvNormAct(coarse_channels, out_channels, kernel_size=1)
        self.merge = ConvNormAct(skip_channels + out_channels, out_channels)

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:
        """(N, skip, H, W) and (N, coarse, H/2, W/2) -> (N, out, H, W).

        Only the leading channels of a wider map are used; a narrower one is padded with zero channels.
        """
        skip = fit_channels(skip, self.skip_channels)
        reduced = self.reduce(fit_channels(coarse, self.coarse_channels))
        size = (skip.shape[-2], skip.shape[-1])
        fused: Tensor = self.merge(torch.cat([skip, resize(reduced, size)], dim=1))
        return fused


class AuxiliaryHead(nn.Module):
    """3x3 convolution and 1x1 classifier on the maps of the branches at one scale, for the training only.

    The paper does not describe it; with heads at 1/16 and 1/32 of this form, as in the published code, the student has
    the printed number of parameters.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = ConvNormAct(channels, channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N, *, H, W) of together ``channels`` channels -> logits (N, classes, H, W)."""
        logits: Tensor = self.classifier(self.conv(torch.cat(list(maps), dim=1)))
        return logits


class Head(nn.Module):
    """Concatenated branches -> 1x1 fusion, 3x3 convolution, 1x1 classifier, bilinear upsampling to the image."""

    def __init__(self, branch_channels: int, branches: int, num_classes: int) -> None:
        super().__init__()
        channels = branch_channels * branches
        self.branch_channels = branch_channels
        self.fusion = ConvNormAct(channels, channels, kernel_size=1)
        self.conv = ConvNormAct(channels, channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None) -> Tensor:
        """One map (N, branch_channels, H/8, W/8) per branch -> logits (N, classes, *size), by default at H/8, W/8."""
        joined = torch.cat([fit_channels(x, self.branch_channels) for x in maps], dim=1)
        logits: Tensor = self.classifier(self.conv(self.fusion(joined)))
        return logits if size is None else resize(logits, size)


@dataclass(frozen=True)
class Node:
    """A cell that is built once; ``parent`` is the node whose output it reads (-1: the stem)."""

    parent: int
    cell: CellSpec


def share_prefixes(spec: MultiBranchSpec) -> tuple[tuple[Node, ...], tuple[tuple[int, ...], ...]]:
    """The cells to build, shared prefixes once, and for every branch the nodes along its path.

    Branches share a cell if they share all cells before it and its operator, scale and width are equal (section 3.4).
    """
    nodes: list[Node] = []
    index_of: dict[Node, int] = {}
    paths = []
    for branch in spec.branches:
        parent, path = -1, []
        for cell in branch.cells:
            node = Node(parent, cell)
            if node not in index_of:
                index_of[node] = len(nodes)
                nodes.append(node)
            parent = index_of[node]
            path.append(parent)
        paths.append(tuple(path))
    return tuple(nodes), tuple(paths)


class MultiBranchNetwork(nn.Module):
    """The network of a spec: (N, 3, H, W) images, H and W from 64 up -> logits (N, classes, H, W)."""

    def __init__(self, spec: MultiBranchSpec, num_classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.nodes, self.paths = share_prefixes(spec)
        ratio = spec.end_ratio
        self.stem = Stem(ratio)
        self.cells = nn.ModuleList(
            make_operator(node.cell.operator, node.cell.in_channels, node.cell.channels, node.cell.stride)
            for node in self.nodes
        )
        self.fuses = nn.ModuleList(
            nn.ModuleDict(
                {
                    str(scale): Fuse(2 * scale * ratio, branch.skip_channels(scale, 8 * ratio), scale * ratio)
                    for scale in scales_below(branch.scale)
                }
            )
            for branch in spec.branches
        )
        self.head = Head(8 * ratio, len(spec.branches), num_classes)
        self.num_classes = num_classes
        self.auxiliary: nn.ModuleDict | None = None

    def add_auxiliary_heads(self) -> None:
        """Add heads at the scales that the branches pass below 1/8, which are trained beside the main one."""
        scales = sorted({scale for branch in self.spec.branches for scale in (16, 32) if scale <= branch.scale})
        self.auxiliary = nn.ModuleDict(
            {str(scale): AuxiliaryHead(self._channels_at(scale), self.num_classes) for scale in scales}
        )

    def remove_auxiliary_heads(self) -> None:
        """Remove the auxiliary heads, which inference does not run."""
        self.auxiliary = None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(N, 3, H, W) -> logits (N, classes, H, W).

        In training mode with auxiliary heads: these logits and those of the heads at 1/16 and 1/32, at their own size.
        """
        stem = self.stem(images)
        outputs: list[Tensor] = []
        for node, cell in zip(self.nodes, self.cells, strict=True):
            x = stem if node.parent < 0 else outputs[node.parent]
            outputs.append(cell(fit_channels(x, node.cell.in_channels)))
        maps = [self._upsample_branch(index, stem, outputs) for index in range(len(self.paths))]
        logits: Tensor = self.head(maps, (images.shape[-2], images.shape[-1]))
        if self.auxiliary is None or not self.training:
            return logits
        heads = ((int(scale), head) for scale, head in self.auxiliary.items())
        return logits, *(head(self._maps_at(scale, outputs)) for scale, head in heads)

    def _channels_at(self, scale: int) -> int:
        passing = (branch for branch in self.spec.branches if branch.scale >= scale)
        stem = 8 * self.spec.end_ratio
        return sum(b.channels if b.scale == scale else b.skip_channels(scale, stem) for b in passing)

    def _maps_at(self, scale: int, outputs: list[Tensor]) -> list[Tensor]:
        """The last map at ``scale`` of every branch that reaches it, with the channels that the upsampling reads."""
        maps = []
        for branch, path in zip(self.spec.branches, self.paths, strict=True):
            last = [outputs[node] for node in path if self.nodes[node].cell.out_scale == scale]
            if last:
                wanted = branch.channels if branch.scale == scale else branch.skip_channels(scale, 0)
                maps.append(fit_channels(last[-1], wanted))
        return maps

    def _upsample_branch(self, index: int, stem: Tensor, outputs: list[Tensor]) -> Tensor:
        """The map of one branch at scale 8."""
        path = self.paths[index]
        last_at = {8: stem} | {self.nodes[node].cell.out_scale: outputs[node] for node in path}
        branch = self.spec.branches[index]
        x = fit_channels(last_at[branch.scale], branch.channels)
        for scale, fuse in self.fuses[index].items():  # type: ignore[operator]
            x = fuse(last_at[int(scale)], x)
        return x


def scales_below(scale: int) -> tuple[int, ...]:
    """The finer downsampling rates on the upsampling path of a branch at ``scale``, coarsest first: 32 -> (16, 8)."""
    scales = []
    while scale > 8:
        scale //= 2
        scales.append(scale)
    return tuple(scales)
