"""Superkernels: operators that hold the weights of their widest choice and run at any narrower one.

FasterSeg section 3.1.3. The width is an argument: ``forward(x, width)`` uses the leading ``width`` filters and the
leading ``x.shape[1]`` input channels, and the BatchNorm that belongs to that width. ``extract`` copies a choice of
widths into the plain operator of :mod:`dnas.ops.convolution`, which then computes the same function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.ops.convolution import ConvBlock, ConvNormAct, FactorizedReduce, ZoomedConv, pad_to_even, zoomed
from dnas.ops.leading import joint_conv2d


class WidthNorm(nn.ModuleDict):
    """One BatchNorm per width, since the statistics of a narrow and of a wide choice differ."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__({str(width): nn.BatchNorm2d(width) for width in sorted(set(widths))})

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, width, H, W) with the statistics of its width."""
        norm: Tensor = self.of(x.shape[1])(x)
        return norm

    def of(self, width: int) -> nn.BatchNorm2d:
        """The norm of a width."""
        if str(width) not in self:
            raise ValueError(f"width {width} is none of the choices {', '.join(self)}")
        return cast("nn.BatchNorm2d", self[str(width)])

    def copy_to(self, norm: nn.BatchNorm2d, width: int) -> None:
        """Copy the leading part of the BatchNorm of ``width`` into ``norm``, which may be narrower."""
        for name, value in self[str(width)].state_dict().items():
            target = norm.state_dict()[name]
            target.copy_(value[: target.shape[0]] if value.ndim else value)


class SuperConvNormAct(nn.Module):
    """Convolution of variable widths, BatchNorm of the width, ReLU."""

    def __init__(self, in_channels: int, widths: Sequence[int], kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.weight = nn.Parameter(torch.empty(max(widths), in_channels, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = WidthNorm(widths)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C, H, W) with C up to ``in_channels`` -> (N, width, ceil(H / stride), ceil(W / stride))."""
        return F.relu_(self.norm(joint_conv2d(x, [self.weight], self.stride, [width])))

    @torch.no_grad()
    def extract(self, inputs: Sequence[int], width: int, keep: int | None = None) -> ConvNormAct:
        """The plain convolution for the input channels ``inputs`` (indices) at ``width``.

        ``keep`` drops all but the first outputs: what remains when nobody reads the others.
        """
        keep = width if keep is None else keep
        plain = ConvNormAct(len(inputs), keep, self.kernel_size, self.stride).to(self.weight)
        plain.conv.weight.copy_(self.weight[:keep, list(inputs)])
        self.norm.copy_to(plain.norm, width)
        return plain


class SuperConvBlock(nn.Module):
    """One or two 3x3 superkernel convolutions, all of the output width ("conv", "conv x2")."""

    def __init__(self, in_channels: int, widths: Sequence[int], stride: int = 1, *, depth: int) -> None:
        super().__init__()
        layers = [SuperConvNormAct(in_channels, widths, stride=stride)]
        layers += [SuperConvNormAct(max(widths), widths) for _ in range(depth - 1)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C, H, W) -> (N, width, ceil(H / stride), ceil(W / stride))."""
        for layer in self.layers:
            x = layer(x, width)
        return x

    def convolutions(self) -> tuple[SuperConvNormAct, ...]:
        """Its convolutions in order."""
        return tuple(cast("SuperConvNormAct", layer) for layer in self.layers)

    def extract(self, in_channels: int, width: int, keep: int | None = None) -> ConvBlock:
        """The plain block at these widths; ``keep`` as in :meth:`SuperConvNormAct.extract`."""
        depth = len(self.layers)
        block = ConvBlock(1, 1, depth=depth)
        for index in range(depth):
            layer = cast("SuperConvNormAct", self.layers[index])
            inputs = range(in_channels if index == 0 else width)
            block[index] = layer.extract(inputs, width, keep if index == depth - 1 else None)
        return block


class SuperZoomedConv(nn.Module):
    """Zoomed convolution of variable widths ("zoomed conv", "zoomed conv x2")."""

    def __init__(self, in_channels: int, widths: Sequence[int], stride: int = 1, *, depth: int) -> None:
        super().__init__()
        self.stride = stride
        self.block = SuperConvBlock(in_channels, widths, depth=depth)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C, H, W) -> (N, width, ceil(H / stride), ceil(W / stride))."""
        return zoomed(x, lambda small: self.block(small, width), self.stride)

    def extract(self, in_channels: int, width: int, keep: int | None = None) -> ZoomedConv:
        """The plain zoomed convolution at these widths."""
        plain = ZoomedConv(1, 1, self.stride, depth=len(self.block.layers))
        plain.block = self.block.extract(in_channels, width, keep)
        return plain


class SuperSkip(nn.Module):
    """Skip connection of stride 1: the identity, cut or filled with zero channels to the requested width.

    It has no weights and adds no channels of its own, so a derived network can leave it out ("shrink" it, FasterSeg
    section 3.4) and compute the same function.
    """

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C, H, W) -> (N, width, H, W)."""
        return fit_channels(x, width)


class SuperFactorizedReduce(nn.Module):
    """Skip connection of stride 2 of variable widths."""

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        widest = max(widths)
        self.even = nn.Parameter(torch.empty(widest - widest // 2, in_channels, 1, 1))
        self.odd = nn.Parameter(torch.empty(widest // 2, in_channels, 1, 1))
        for weight in (self.even, self.odd):
            nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")
        self.norm = WidthNorm(widths)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C, H, W) -> (N, width, ceil(H / 2), ceil(W / 2))."""
        return F.relu_(self.norm(self.halves(x, width)))

    def halves(self, x: Tensor, width: int) -> Tensor:
        """What is normalised: both convolutions side by side, (N, width, ceil(H / 2), ceil(W / 2))."""
        x = pad_to_even(x)
        even = joint_conv2d(x, [self.even], 2, [width - width // 2])
        odd = joint_conv2d(x[:, :, 1:, 1:], [self.odd], 2, [width // 2])
        return torch.cat([even, odd], dim=1)

    @torch.no_grad()
    def extract(self, in_channels: int, width: int, keep: int | None = None) -> FactorizedReduce:
        """The plain operator at these widths. It makes all of its channels: ``keep`` can only be the width."""
        if keep not in (None, width):
            raise ValueError(f"a skip of stride 2 makes all of its {width} channels, cannot keep {keep}")
        plain = FactorizedReduce(in_channels, width).to(self.even)
        plain.even.weight.copy_(self.even[: width - width // 2, :in_channels])
        plain.odd.weight.copy_(self.odd[: width // 2, :in_channels])
        self.norm.copy_to(plain.norm, width)
        return plain


def fit_channels(x: Tensor, width: int) -> Tensor:
    """The leading ``width`` channels of (N, C, H, W), with zero channels appended where C is smaller."""
    channels = x.shape[1]
    if channels == width:
        return x
    return x[:, :width] if channels > width else F.pad(x, (0, 0, 0, 0, 0, width - channels))


def self_gathering(network: nn.Module) -> Iterator[nn.Parameter]:
    """The weights that the backward pass adds gradients to by itself (see :func:`~dnas.ops.leading.joint_conv2d`)."""
    for module in network.modules():
        if isinstance(module, SuperConvNormAct):
            yield module.weight
        elif isinstance(module, SuperFactorizedReduce):
            yield from (module.even, module.odd)
