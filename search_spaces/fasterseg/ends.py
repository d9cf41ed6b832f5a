"""The decoder of the supernet: the fusions of every branch, and a head for every combination of branches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dnas.networks.multi_branch import Fuse, Head, scales_below
from dnas.ops import ConvNormAct, SuperConvNormAct, resize
from dnas.ops.recomputation import recomputed


class SuperFuse(nn.Module):
    """:class:`~dnas.networks.multi_branch.Fuse` with a variable number of skip channels at the finer scale."""

    def __init__(self, coarse_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.skip_channels, self.out_channels = skip_channels, out_channels
        self.reduce = ConvNormAct(coarse_channels, out_channels, kernel_size=1)
        self.merge = SuperConvNormAct(skip_channels + out_channels, [out_channels])

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:
        """(N, C, H, W) with C up to ``skip_channels`` and (N, coarse, H/2, W/2) -> (N, out, H, W)."""
        reduced = resize(self.reduce(coarse), (skip.shape[-2], skip.shape[-1]))
        missing = skip.new_zeros(1).expand(skip.shape[0], self.skip_channels - skip.shape[1], *skip.shape[-2:])
        fused: Tensor = self.merge(torch.cat([skip, missing, reduced], dim=1), self.out_channels)
        return fused

    def extract(self, skip_channels: int) -> Fuse:
        """The plain fusion for ``skip_channels`` channels, with copied weights."""
        plain = Fuse(self.reduce.conv.in_channels, skip_channels, self.out_channels).to(self.merge.weight)
        plain.reduce.load_state_dict(self.reduce.state_dict())
        reduced = range(self.skip_channels, self.skip_channels + self.out_channels)
        plain.merge = self.merge.extract([*range(skip_channels), *reduced], self.out_channels)
        return plain


class SuperEnds(nn.Module):
    """Fusions and heads at one expansion ratio."""

    def __init__(
        self,
        ratio: int,
        scales: Sequence[int],
        combinations: Sequence[tuple[int, ...]],
        skip_ratio: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.combinations = tuple(combinations)
        self.fuses = nn.ModuleDict(
            {
                f"{branch}_{scale}": SuperFuse(2 * scale * ratio, scale * skip_ratio, scale * ratio)
                for branch in scales
                for scale in scales_below(branch)
            }
        )
        self.heads = nn.ModuleDict(
            {combination_name(scales): Head(8 * ratio, len(scales), num_classes) for scales in combinations}
        )

    def forward(
        self,
        outputs: dict[int, Tensor],
        skips: dict[tuple[int, int], Tensor],
        size: tuple[int, int] | None,
        *,
        recompute: bool = False,
        combinations: Sequence[tuple[int, ...]] | None = None,
    ) -> dict[tuple[int, ...], Tensor]:
        """Final maps by branch scale, and skip maps by (branch, scale) -> logits by combination.

        They are of ``size``, without it of 1/8. ``recompute``: keep only the maps that the steps up and the heads read.
        ``combinations``: those to compute, by default all.
        """
        at_eight = {}
        for branch, x in outputs.items():
            for scale in scales_below(branch):
                fuse, skip = self.fuse(branch, scale), skips[branch, scale]
                x = recomputed(fuse, skip, x, networks=[fuse]) if recompute else fuse(skip, x)
            at_eight[branch] = x
        logits = {}
        for scales in self.combinations if combinations is None else combinations:
            run = functools.partial(_run_head, self.head(scales), size)
            maps = [at_eight[scale] for scale in scales]
            logits[scales] = recomputed(run, *maps, networks=[self.head(scales)]) if recompute else run(*maps)
        return logits

    def fuse(self, branch: int, scale: int) -> SuperFuse:
        """The fusion of ``branch`` at ``scale``."""
        return cast("SuperFuse", self.fuses[f"{branch}_{scale}"])

    def head(self, combination: tuple[int, ...]) -> Head:
        """The head of a combination of branches."""
        return cast("Head", self.heads[combination_name(combination)])


def _run_head(head: Head, size: tuple[int, int] | None, *maps: Tensor) -> Tensor:
    logits: Tensor = head(maps, size)
    return logits


def combination_name(combination: Sequence[int]) -> str:
    """(8, 32) as text: ``8_32``."""
    return "_".join(map(str, combination))
