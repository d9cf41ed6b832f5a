"""Layers whose widths and dilation rates may be choices.

They hold the weights of the widest choice and use leading slices. The input's width is that of the given map.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.choices.choice import Choice, RateChoice, WidthChoice
from dnas.choices.running import current, gated
from dnas.errors import UserError
from dnas.ops import SlicedModule, SwitchableBatchNorm2d, fit_channels, fractional_conv2d, sliced_conv2d

Width = int | WidthChoice
Rate = int | RateChoice


def widest(width: Width) -> int:
    """The largest number of channels."""
    return width.widest if isinstance(width, WidthChoice) else width


class ChoiceLayer(nn.Module, ABC):
    """A layer that a plain one replaces in a derived network."""

    multiplier: int = 1

    @property
    def output(self) -> Width | None:
        """The width of its output; None: ``multiplier`` times that of its input."""
        return None

    def structure(self) -> str:
        """What its latency depends on besides the maps' shapes; by default everything that it prints."""
        return self.extra_repr()

    @abstractmethod
    def plain_layer(self, in_channels: int, index_of: Mapping[Choice, int]) -> nn.Module:
        """The layer for maps of ``in_channels`` channels and one option of every choice, with a copy of the weights."""


class ChoiceConv2d(SlicedModule, ChoiceLayer):
    """A convolution with "same" padding whose output width and dilation rate may be choices.

    (N, C, H, W), C up to the widest ``in_channels``, -> (N, width, ceil(H / stride), ceil(W / stride)). ``kernel_size``
    is odd. The width's gradient passes through the norm that follows; a layer with a bias carries it itself, unless
    ``gated`` is False.
    """

    def __init__(
        self,
        in_channels: Width,
        out_channels: Width,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        dilation: Rate = 1,
        bias: bool = False,
        gated: bool = True,
    ) -> None:
        super().__init__()
        _check_kernel(kernel_size)
        self.gated = gated and bias
        self.in_channels, self.out_channels = widest(in_channels), widest(out_channels)
        self.kernel_size, self.stride = kernel_size, stride
        self.dilation = 1 if isinstance(dilation, RateChoice) else dilation
        self.width = out_channels if isinstance(out_channels, WidthChoice) else None
        self.rate = dilation if isinstance(dilation, RateChoice) else None
        self.weight = nn.Parameter(torch.empty(self.out_channels, self.in_channels, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(self.out_channels)) if bias else None

    @property
    def output(self) -> Width:
        """The width of its output."""
        return self.out_channels if self.width is None else self.width

    def structure(self) -> str:
        """Without the input's channels, and without the output's where they are a choice."""
        channels = self.out_channels if self.width is None else "chosen"
        return f"{channels}, {self.extra_repr().split(', ', 2)[2]}"

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        if x.shape[1] > self.in_channels:
            raise UserError(f"{type(self).__name__}({self.extra_repr()}): given a map of {x.shape[1]} channels")
        width = self.out_channels if self.width is None else current().width(self.width)
        rate = self.dilation if self.rate is None else current().rate(self.rate)
        if rate == 1 and self.bias is None and not isinstance(rate, Tensor):
            return sliced_conv2d(x, [self.weight], self.stride, [width], [self.gradient_buffers.get("weight")])
        bias = None if self.bias is None else self.bias[:width]
        out = _convolve(x, self.weight[:width, : x.shape[1]], bias, self.stride, rate, 1)
        return out if not self.gated or self.width is None else gated(out, current().gate(self.width))

    @torch.no_grad()
    def plain_layer(self, in_channels: int, index_of: Mapping[Choice, int]) -> nn.Conv2d:
        """The ``nn.Conv2d`` with the weights for these widths."""
        width = self.out_channels if self.width is None else self.width.widths[index_of[self.width]]
        rate = self.dilation if self.rate is None else index_of[self.rate] + 1
        conv = _plain_conv(in_channels, width, self.kernel_size, self.stride, rate, 1, self.bias is not None)
        return _filled(conv, self.weight[:width, :in_channels], self.bias).train(self.training)

    @torch.no_grad()
    def take_channels(self, channels: int) -> None:
        """Take maps of up to ``channels`` channels, with fresh weights that keep the scale of the output."""
        shape, old = (self.out_channels, channels, self.kernel_size, self.kernel_size), self.weight
        weight = torch.empty(shape, dtype=old.dtype, device=old.device)
        if not old.is_meta:
            weight.normal_(0, float(old.std()) * math.sqrt(self.in_channels / channels))
        self.in_channels, self.weight = channels, nn.Parameter(weight)

    def extra_repr(self) -> str:
        """The settings as ``nn.Conv2d`` prints them."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"dilation={self.dilation}, bias={self.bias is not None}"
        )


class ChoiceGroupConv2d(ChoiceLayer):
    """A group convolution of as many channels as its input has, times ``multiplier``; by default depth-wise.

    (N, C, H, W), C a multiple of ``group_width`` up to the widest ``channels``, -> (N, multiplier * C,
    ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        channels: Width,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        group_width: int = 1,
        multiplier: int = 1,
        dilation: Rate = 1,
    ) -> None:
        super().__init__()
        _check_kernel(kernel_size)
        widths = channels.widths if isinstance(channels, WidthChoice) else (channels,)
        if wrong := [width for width in widths if width % group_width]:
            raise UserError(f"{wrong[0]} channels cannot be divided into groups of {group_width}")
        self.channels, self.multiplier, self.group_width = widest(channels), multiplier, group_width
        self.kernel_size, self.stride = kernel_size, stride
        self.dilation = 1 if isinstance(dilation, RateChoice) else dilation
        self.rate = dilation if isinstance(dilation, RateChoice) else None
        self.weight = nn.Parameter(torch.empty(multiplier * self.channels, group_width, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        channels = x.shape[1]
        if channels > self.channels or channels % self.group_width:
            raise UserError(f"{type(self).__name__}({self.extra_repr()}): given a map of {channels} channels")
        rate = self.dilation if self.rate is None else current().rate(self.rate)
        weight = self.weight[: self.multiplier * channels]
        return _convolve(x, weight, None, self.stride, rate, channels // self.group_width)

    def structure(self) -> str:
        """Without the channels, which are those of the input."""
        return self.extra_repr().split(", ", 1)[1]

    @torch.no_grad()
    def plain_layer(self, in_channels: int, index_of: Mapping[Choice, int]) -> nn.Conv2d:
        """The ``nn.Conv2d`` with the weights for this width."""
        rate = self.dilation if self.rate is None else index_of[self.rate] + 1
        width, groups = self.multiplier * in_channels, in_channels // self.group_width
        conv = _plain_conv(in_channels, width, self.kernel_size, self.stride, rate, groups, False)
        return _filled(conv, self.weight[:width], None).train(self.training)

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, group_width={self.group_width}, "
            f"multiplier={self.multiplier}, dilation={self.dilation}"
        )


class ChoiceBatchNorm2d(ChoiceLayer):
    """One BatchNorm for each width, (N, C, H, W) -> (N, C, H, W).

    ``channels`` is the width, or all widths that can occur. Carries the gradient of a width that is a choice, unless
    ``gated`` is False: if several norms follow one width, only one should.
    """

    def __init__(self, channels: Width | Sequence[int], *, gated: bool = True) -> None:
        super().__init__()
        self.width = channels if isinstance(channels, WidthChoice) and gated else None
        widths: Sequence[int]
        if isinstance(channels, WidthChoice):
            widths = channels.widths
        else:
            widths = [channels] if isinstance(channels, int) else channels
        self.norms = SwitchableBatchNorm2d(widths)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the statistics of the map's width."""
        if str(x.shape[1]) not in self.norms:
            raise UserError(f"BatchNorm of {', '.join(self.norms)} channels: given a map of {x.shape[1]} channels")
        out: Tensor = self.norms(x)
        return out if self.width is None else gated(out, current().gate(self.width))

    def structure(self) -> str:
        """Nothing: it is that of its input's width."""
        return ""

    @torch.no_grad()
    def plain_layer(self, in_channels: int, index_of: Mapping[Choice, int]) -> nn.BatchNorm2d:
        """The BatchNorm of the map's width."""
        own = self.norms.of(in_channels)
        norm = nn.BatchNorm2d(in_channels, own.eps, own.momentum, device=own.weight.device, dtype=own.weight.dtype)
        norm.load_state_dict(own.state_dict())
        return norm.train(self.training)


class ChoiceSkip(ChoiceLayer):
    """Leaves a map as it is, but for its width: the leading channels, or zero channels appended."""

    def __init__(self, channels: Width) -> None:
        super().__init__()
        self.width = channels if isinstance(channels, WidthChoice) else None
        self.channels = widest(channels)

    @property
    def output(self) -> Width:
        """The width of its output."""
        return self.channels if self.width is None else self.width

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H, W)."""
        if self.width is None:
            return fit_channels(x, self.channels)
        return gated(fit_channels(x, current().width(self.width)), current().gate(self.width))

    def plain_layer(self, in_channels: int, index_of: Mapping[Choice, int]) -> nn.Module:
        """The identity, or what fits the channels."""
        width = self.channels if self.width is None else self.width.widths[index_of[self.width]]
        return nn.Identity() if width == in_channels else FitChannels(width)


class FitChannels(nn.Module):
    """Truncates maps to ``channels`` channels, or appends zero channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, channels, H, W)."""
        return fit_channels(x, self.channels)

    def extra_repr(self) -> str:
        """The channels."""
        return str(self.channels)


class ChoiceConvNorm(nn.Sequential):
    """Convolution, BatchNorm and, unless ``activation`` is None, the activation; the arguments are ChoiceConv2d's."""

    def __init__(
        self,
        in_channels: Width,
        out_channels: Width,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        dilation: Rate = 1,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        layers: list[nn.Module] = [
            ChoiceConv2d(in_channels, out_channels, kernel_size, stride, dilation=dilation),
            ChoiceBatchNorm2d(out_channels),
        ]
        super().__init__(*layers, *([] if activation is None else [activation()]))


class ChoiceGroupConvNorm(nn.Sequential):
    """Group convolution, by default depth-wise, BatchNorm and activation; the arguments are ChoiceGroupConv2d's."""

    def __init__(
        self,
        channels: Width,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        group_width: int = 1,
        dilation: Rate = 1,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        layers: list[nn.Module] = [
            ChoiceGroupConv2d(channels, kernel_size, stride, group_width=group_width, dilation=dilation),
            ChoiceBatchNorm2d(channels, gated=False),
        ]
        super().__init__(*layers, *([] if activation is None else [activation()]))


def _check_kernel(kernel_size: int) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UserError(f"kernel {kernel_size}x{kernel_size}: expected an odd size")


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, rate: Tensor | int, groups: int) -> Tensor:
    if isinstance(rate, Tensor):
        return fractional_conv2d(x, weight, rate, bias, stride, groups)
    return F.conv2d(x, weight, bias, stride, rate * (weight.shape[-1] // 2), rate, groups)


def _plain_conv(
    in_channels: int, width: int, kernel: int, stride: int, rate: int, groups: int, bias: bool
) -> nn.Conv2d:
    padding = rate * (kernel // 2)
    return nn.Conv2d(in_channels, width, kernel, stride, padding, rate, groups, bias, device="meta")


def _filled(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    conv.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach()[: math.prod(weight.shape[:1])].clone())
    return conv
