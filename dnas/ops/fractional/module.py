"""The fractional-dilation convolution as a layer whose dilation rate is learned within bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import Self

from dnas.errors import UserError
from dnas.ops.fractional.functional import Method, fractional_conv2d
from dnas.receptive_field import Layer


class FractionalConv2d(nn.Module):
    """A convolution with a learned dilation rate: (N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride)).

    ``weight`` and ``bias`` are those of ``nn.Conv2d``; ``dilation`` is a scalar parameter with the bounds
    1 <= rate <= ``upper`` (RegSeg v3, Eq. 3: k / s of the preceding layers). ``forward`` uses the rate clamped to these
    bounds, with a straight-through gradient, so that a rate outside them can return. Call :meth:`clamp_` after each
    optimizer step to keep the parameter itself within them. Raises :class:`UserError` for an even kernel size, channels
    that are not divisible by ``groups``, and an upper bound that excludes the initial rate.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: float = 1.0,
        groups: int = 1,
        bias: bool = True,
        *,
        upper: float = math.inf,
        method: Method = "exact",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise UserError(f"kernel {kernel_size}x{kernel_size}: expected a square kernel of odd size")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise UserError(
                f"{in_channels} input and {out_channels} output channels: expected multiples of groups={groups}"
            )
        if not 1 <= dilation <= upper or not math.isfinite(dilation):
            raise UserError(
                f"dilation rate {dilation:g} with upper bound {upper:g}: expected a finite rate between 1 and the bound"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.groups = kernel_size, stride, groups
        self.upper, self.method = float(upper), method
        # Initialised by nn.Conv2d, so that a seed gives both layers the same weights.
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias, device=device, dtype=dtype
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.dilation = nn.Parameter(torch.tensor(float(dilation), device=device, dtype=dtype))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, upper: float = math.inf, *, method: Method = "exact") -> Self:
        """A layer that computes the same as ``conv`` and shares its parameters.

        The caller has checked that the kernel is square and the zero padding is ``dilation * (kernel // 2)``.
        """
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            conv.stride[0],
            float(conv.dilation[0]),
            conv.groups,
            conv.bias is not None,
            upper=upper,
            method=method,
            device="meta",
        )
        layer.weight, layer.bias = conv.weight, conv.bias
        rate = torch.tensor(float(conv.dilation[0]), device=conv.weight.device)
        # At least float32: in half precision, neighbouring rates are up to 1 / 8 apart.
        layer.dilation = nn.Parameter(rate.to(torch.promote_types(conv.weight.dtype, torch.float32)))
        return layer.train(conv.training)

    def to_conv(self, rate: int) -> nn.Conv2d:
        """The ``nn.Conv2d`` with the integer dilation ``rate`` that shares this layer's weight and bias."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            rate * (self.kernel_size // 2),
            rate,
            self.groups,
            self.bias is not None,
            device="meta",
        )
        conv.weight, conv.bias = self.weight, self.bias
        return conv.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W) at the clamped rate."""
        return fractional_conv2d(
            x, self.weight, self.clamped_dilation(), self.bias, self.stride, self.groups, self.method
        )

    def clamped_dilation(self) -> Tensor:
        """The rate clamped to its bounds, a scalar tensor with a straight-through gradient to ``dilation``."""
        rate = self.dilation
        # Exact, as the difference is zero; rate + (clamped - rate).detach() could be rounded to outside the bounds.
        return rate.detach().clamp(1.0, self.upper) + (rate - rate.detach())

    @torch.no_grad()
    def clamp_(self) -> Self:
        """Clamp ``dilation`` to its bounds, in place."""
        self.dilation.clamp_(1.0, self.upper)
        return self

    def rate(self) -> float:
        """The rate clamped to its bounds, as a float; raises :class:`UserError` if it is NaN."""
        return self.clamped(float(self.dilation.item()))

    def clamped(self, value: float) -> float:
        """``value``, a rate that was read from ``dilation``, clamped; raises as :meth:`rate` does."""
        if math.isnan(value):
            raise UserError("dilation rate nan: the search has diverged; lower the learning rate of the dilation rates")
        return min(max(value, 1.0), self.upper)

    def field_layer(self) -> Layer:
        """The layer for field-of-view arithmetic: kernel size, stride and current rate (1 on the meta device)."""
        return Layer(self.kernel_size, self.stride, 1.0 if self.dilation.is_meta else self.rate())

    def extra_repr(self) -> str:
        """The settings as ``nn.Conv2d`` prints them, with the bounds of the rate."""
        rate = "?" if self.dilation.is_meta else f"{self.dilation.item():.3g}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"dilation={rate} in [1, {self.upper:g}], groups={self.groups}, bias={self.bias is not None}"
        )


def fractional_layers(module: nn.Module) -> dict[str, FractionalConv2d]:
    """The fractional convolutions in ``module`` by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, FractionalConv2d)}


def clamp_dilations(module: nn.Module) -> None:
    """Clamp every rate in ``module`` to its bounds, in place. Call it after each optimizer step."""
    for layer in fractional_layers(module).values():
        layer.clamp_()
