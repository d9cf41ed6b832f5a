"""Superkernels: operators that hold the weights of the widest choice and run at any width (FasterSeg, section 3.1.3).

The width is an argument: ``forward(x, width)`` uses the leading ``width`` filters, the leading ``x.shape[1]`` input
channels, and the BatchNorm of that width. ``extract`` copies the slice for given widths into a plain operator of
:mod:`dnas.ops.convolution`, which computes the same function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.ops.convolution import ConvBlock, ConvNormAct, FactorizedReduce, ZoomedConv, pad_to_even, zoomed
from dnas.ops.fused_bn_relu import fused_bn_relu
from dnas.ops.sliced_conv import GradientBuffer, sliced_conv2d


class SwitchableBatchNorm2d(nn.ModuleDict):
    """One BatchNorm per width, since statistics differ between widths.

    Yu et al. 2019, "Slimmable Neural Networks", section 3.3.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__({str(width): nn.BatchNorm2d(width) for width in sorted(set(widths))})

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, width, H, W) by the BatchNorm of its width."""
        norm: Tensor = self.of(x.shape[1])(x)
        return norm

    def of(self, width: int) -> nn.BatchNorm2d:
        """The BatchNorm for ``width``."""
        if str(width) not in self:
            raise ValueError(f"width {width} is none of the choices {', '.join(self)}")
        return cast("nn.BatchNorm2d", self[str(width)])

    def copy_to(self, norm: nn.BatchNorm2d, width: int) -> None:
        """Copy the leading part of the BatchNorm of ``width`` into ``norm``, which may be narrower."""
        for name, value in self[str(width)].state_dict().items():
            target = norm.state_dict()[name]
            target.copy_(value[: target.shape[0]] if value.ndim else value)


@dataclass(frozen=True)
class ConvolutionChain:
    """Consecutive convolutions of an operator.

    A cell fuses the first convolutions of all chains that read the same map. ``zoomed``: they read the map at half its
    size, and the operator resizes their result to the size given by its stride.
    """

    layers: tuple[SuperConvNormAct, ...]
    zoomed: bool = False


class SearchableOperator(nn.Module, ABC):
    """An operator with variable width; the interface between operators and cells.

    ``forward(x, width)`` maps (N, C, H, W), with C up to the widest input, to (N, width, ceil(H / stride),
    ceil(W / stride)).
    """

    stride: int = 1

    @abstractmethod
    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C, H, W) -> (N, width, ceil(H / stride), ceil(W / stride))."""

    @abstractmethod
    def extract(self, in_channels: int, width: int, keep: int | None = None) -> nn.Module:
        """The plain operator with the weights for these widths, reduced to the first ``keep`` outputs."""

    def chain(self) -> ConvolutionChain | None:
        """Its convolutions, if it consists only of them and its last norm can absorb the operator's weight."""
        return None

    def add_weighted(self, total: Tensor | None, x: Tensor, width: int, weights: Sequence[Tensor | None]) -> Tensor:
        """``total`` (None: zero) plus the operator's output for ``x`` times its weight.

        ``weights``: one scalar for each of equal parts of the batch; None means 1.
        """
        out: Tensor = self(x, width)
        weight = weights[0] if len(weights) == 1 else _per_image(weights, out)
        if weight is None:
            return out if total is None else total + out
        weight = weight.to(out.dtype)
        return out * weight if total is None else torch.addcmul(total, out, weight)


class SlicedModule(nn.Module):
    """A module that convolves with slices of its weights, the parameters named in ``sliced``.

    ``gradient_buffers`` holds the buffers in which an optimiser accumulates gradients, by the name of the weight;
    gradients of other weights are accumulated in ``grad``.
    """

    sliced: tuple[str, ...] = ("weight",)

    def __init__(self) -> None:
        super().__init__()
        self.gradient_buffers: dict[str, GradientBuffer] = {}


class SuperConvNormAct(SlicedModule):
    """Convolution with variable width, switchable BatchNorm, ReLU."""

    def __init__(self, in_channels: int, widths: Sequence[int], kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.weight = nn.Parameter(torch.empty(max(widths), in_channels, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = SwitchableBatchNorm2d(widths)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C, H, W) with C up to ``in_channels`` -> (N, width, ceil(H / stride), ceil(W / stride))."""
        buffers = [self.gradient_buffers.get("weight")]
        return F.relu_(self.norm(sliced_conv2d(x, [self.weight], self.stride, [width], buffers)))

    @torch.no_grad()
    def extract(self, inputs: Sequence[int], width: int, keep: int | None = None) -> ConvNormAct:
        """The plain convolution for the input channels ``inputs`` (indices) at ``width``.

        With ``keep``, only the first outputs are kept, for consumers that do not read the others.
        """
        keep = width if keep is None else keep
        plain = ConvNormAct(len(inputs), keep, self.kernel_size, self.stride).to(self.weight)
        plain.conv.weight.copy_(self.weight[:keep, list(inputs)])
        self.norm.copy_to(plain.norm, width)
        return plain


class SuperConvBlock(SearchableOperator):
    """One or two 3x3 superkernel convolutions with the same output width ("conv", "conv x2")."""

    def __init__(self, in_channels: int, widths: Sequence[int], stride: int = 1, *, depth: int) -> None:
        super().__init__()
        self.stride = stride
        layers = [SuperConvNormAct(in_channels, widths, stride=stride)]
        layers += [SuperConvNormAct(max(widths), widths) for _ in range(depth - 1)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C, H, W) -> (N, width, ceil(H / stride), ceil(W / stride))."""
        for layer in self.layers:
            x = layer(x, width)
        return x

    def chain(self) -> ConvolutionChain:
        """All of its convolutions."""
        return ConvolutionChain(tuple(cast("SuperConvNormAct", layer) for layer in self.layers))

    def extract(self, in_channels: int, width: int, keep: int | None = None) -> ConvBlock:
        """The plain block at these widths; ``keep`` as in :meth:`SuperConvNormAct.extract`."""
        depth = len(self.layers)
        block = ConvBlock(1, 1, depth=depth)
        for index in range(depth):
            layer = cast("SuperConvNormAct", self.layers[index])
            inputs = range(in_channels if index == 0 else width)
            block[index] = layer.extract(inputs, width, keep if index == depth - 1 else None)
        return block


class SuperZoomedConv(SearchableOperator):
    """Zoomed convolution with variable width ("zoomed conv", "zoomed conv x2")."""

    def __init__(self, in_channels: int, widths: Sequence[int], stride: int = 1, *, depth: int) -> None:
        super().__init__()
        self.stride = stride
        self.block = SuperConvBlock(in_channels, widths, depth=depth)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C, H, W) -> (N, width, ceil(H / stride), ceil(W / stride))."""
        return zoomed(x, lambda small: self.block(small, width), self.stride)

    def chain(self) -> ConvolutionChain:
        """Its convolutions at half the resolution."""
        return ConvolutionChain(self.block.chain().layers, zoomed=True)

    def extract(self, in_channels: int, width: int, keep: int | None = None) -> ZoomedConv:
        """The plain zoomed convolution at these widths."""
        plain = ZoomedConv(1, 1, self.stride, depth=len(self.block.layers))
        plain.block = self.block.extract(in_channels, width, keep)
        return plain


class SuperSkip(SearchableOperator):
    """Skip connection of stride 1: the identity, truncated or zero-padded to the requested number of channels.

    It has no weights and computes no new channels, so a derived network can remove it ("shrink" it, FasterSeg, section
    3.4) and compute the same function.
    """

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C, H, W) -> (N, width, H, W)."""
        return fit_channels(x, width)

    def extract(self, in_channels: int, width: int, keep: int | None = None) -> nn.Module:
        """The identity; ``width``, ``in_channels`` and ``keep`` must be equal."""
        if in_channels != width or keep not in (None, width):
            raise ValueError(f"a skip of stride 1 cannot turn {in_channels} channels into {keep or width}")
        return nn.Identity()


class SuperFactorizedReduce(SearchableOperator, SlicedModule):
    """Skip connection of stride 2 with variable width."""

    sliced = ("even", "odd")
    stride = 2

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        widest = max(widths)
        self.even = nn.Parameter(torch.empty(widest - widest // 2, in_channels, 1, 1))
        self.odd = nn.Parameter(torch.empty(widest // 2, in_channels, 1, 1))
        for weight in (self.even, self.odd):
            nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")
        self.norm = SwitchableBatchNorm2d(widths)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C, H, W) -> (N, width, ceil(H / 2), ceil(W / 2))."""
        return F.relu_(self.norm(self.halves(x, width)))

    def add_weighted(self, total: Tensor | None, x: Tensor, width: int, weights: Sequence[Tensor | None]) -> Tensor:
        """``total`` plus the weighted output; the weight is folded into the norm."""
        out = fused_bn_relu(self.halves(x, width), [self.norm.of(width)], [weights])
        return out if total is None else total + out

    def halves(self, x: Tensor, width: int) -> Tensor:
        """The input of the norm: both convolutions concatenated, (N, width, ceil(H / 2), ceil(W / 2))."""
        x = pad_to_even(x)
        buffers = self.gradient_buffers
        even = sliced_conv2d(x, [self.even], 2, [width - width // 2], [buffers.get("even")])
        odd = sliced_conv2d(x[:, :, 1:, 1:], [self.odd], 2, [width // 2], [buffers.get("odd")])
        return torch.cat([even, odd], dim=1)

    @torch.no_grad()
    def extract(self, in_channels: int, width: int, keep: int | None = None) -> FactorizedReduce:
        """The plain operator at these widths; ``keep`` must be the width."""
        if keep not in (None, width):
            raise ValueError(f"a skip of stride 2 has all of its {width} channels, cannot keep {keep}")
        plain = FactorizedReduce(in_channels, width).to(self.even)
        plain.even.weight.copy_(self.even[: width - width // 2, :in_channels])
        plain.odd.weight.copy_(self.odd[: width // 2, :in_channels])
        self.norm.copy_to(plain.norm, width)
        return plain


def _per_image(weights: Sequence[Tensor | None], x: Tensor) -> Tensor:
    """(N, 1, 1, 1): the weight of each image of (N, C, H, W)."""
    each = x.shape[0] // len(weights)
    parts = [x.new_ones(each) if weight is None else weight.expand(each) for weight in weights]
    return torch.cat(parts)[:, None, None, None]


def fit_channels(x: Tensor, width: int) -> Tensor:
    """The leading ``width`` channels of (N, C, H, W), with zero channels appended if C is smaller."""
    channels = x.shape[1]
    if channels == width:
        return x
    return x[:, :width] if channels > width else F.pad(x, (0, 0, 0, 0, 0, width - channels))


@dataclass(frozen=True)
class SlicedParameter:
    """The sliced weight ``name`` of ``module``."""

    module: SlicedModule
    name: str

    @property
    def parameter(self) -> nn.Parameter:
        """The weight."""
        return cast("nn.Parameter", getattr(self.module, self.name))

    def attach(self, buffer: GradientBuffer) -> None:
        """Accumulate its gradient in ``buffer``."""
        self.module.gradient_buffers[self.name] = buffer

    def detach(self) -> None:
        """Accumulate its gradient in ``grad`` again."""
        self.module.gradient_buffers.pop(self.name, None)


def sliced_parameters(network: nn.Module) -> Iterator[SlicedParameter]:
    """All sliced weights in ``network``, in module order."""
    for module in network.modules():
        if isinstance(module, SlicedModule):
            yield from (SlicedParameter(module, name) for name in module.sliced)
