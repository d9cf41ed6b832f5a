"""The fractional-dilation convolution as a layer whose rate is learned within bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import Self

from dnas.errors import UserError
from dnas.ops.fractional import Method, fractional_conv2d
from dnas.receptive_field import Layer


class FractionalConv2d(nn.Module):
    """A convolution with a learned dilation rate: (N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride)).

    ``weight`` and ``bias`` are those of ``nn.Conv2d``; ``dilation`` is a scalar parameter, kept within
    1 <= rate <= ``upper`` (RegSeg v3, Eq. 3: k / s of the layers before). ``forward`` uses the rate clamped to these
    bounds while its gradient passes unchanged, so that a rate can come back; call :meth:`clamp_` after an optimiser
    step to keep the parameter itself from wandering off. Raises :class:`UserError` for an even kernel, widths that
    ``groups`` does not divide, and an upper bound that excludes the first rate.
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
            raise UserError(f"{in_channels} input and {out_channels} output channels: expected multiples of {groups}")
        if not 1 <= dilation <= upper or not math.isfinite(dilation):
            raise UserError(
                f"dilation rate {dilation:g} with upper bound {upper:g}: expected a finite rate of at least 1 within it"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.groups = kernel_size, stride, groups
        self.upper, self.method = float(upper), method
        # As nn.Conv2d draws them, so that a seed gives both the same weights.
        drawn = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias, device=device, dtype=dtype
        )
        self.weight, self.bias = drawn.weight, drawn.bias
        self.dilation = nn.Parameter(torch.tensor(float(dilation), device=device, dtype=dtype))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, upper: float = math.inf, *, method: Method = "exact") -> Self:
        """The layer that computes what ``conv`` does and owns its parameters.

        The caller has checked that the convolution is square and padded by ``dilation * (kernel // 2)`` zeros.
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
        # A rate in half precision would move in steps of up to 1 / 8.
        layer.dilation = nn.Parameter(rate.to(torch.promote_types(conv.weight.dtype, torch.float32)))
        return layer.train(conv.training)

    def to_conv(self, rate: int) -> nn.Conv2d:
        """The integer convolution of dilation ``rate`` that owns this layer's weight and bias."""
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
        """The rate within its bounds, a scalar tensor whose gradient reaches ``dilation`` unchanged."""
        rate = self.dilation
        # The difference is exactly zero; the other way round, rate + (clamped - rate), would not be exactly clamped.
        return rate.detach().clamp(1.0, self.upper) + (rate - rate.detach())

    @torch.no_grad()
    def clamp_(self) -> Self:
        """Project ``dilation`` onto its bounds, in place."""
        self.dilation.clamp_(1.0, self.upper)
        return self

    def rate(self) -> float:
        """The rate within its bounds, as a number; raises :class:`UserError` if it is no number."""
        value = float(self.dilation.item())
        if math.isnan(value):
            raise UserError("dilation rate nan: the search has diverged; lower the learning rate of the rates")
        return min(max(value, 1.0), self.upper)

    def field_layer(self) -> Layer:
        """What the layer is for the field of view: kernel, stride, and the rate as it is now."""
        return Layer(self.kernel_size, self.stride, 1.0 if self.dilation.is_meta else self.rate())

    def extra_repr(self) -> str:
        """As of ``nn.Conv2d``, with the bounds."""
        rate = "?" if self.dilation.is_meta else f"{self.dilation.item():.3g}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"dilation={rate} in [1, {self.upper:g}], groups={self.groups}, bias={self.bias is not None}"
        )


def fractional_layers(module: nn.Module) -> dict[str, FractionalConv2d]:
    """The fractional convolutions in ``module`` by their names."""
    return {name: part for name, part in module.named_modules() if isinstance(part, FractionalConv2d)}


def clamp_dilations(module: nn.Module) -> None:
    """Project every rate in ``module`` onto its bounds, in place: to be called after each optimiser step."""
    for layer in fractional_layers(module).values():
        layer.clamp_()
