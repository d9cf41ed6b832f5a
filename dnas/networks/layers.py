"""Building blocks shared by several networks."""

from __future__ import annotations

from torch import Tensor, nn

from dnas.errors import UserError


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution without bias, BatchNorm and, unless ``activation`` is None, the activation.

    Padding is half the kernel: (N, in, H, W) becomes (N, out, ceil(H / stride), ceil(W / stride)) for odd kernels.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


def scaled(channels: int, width: float, divisor: int) -> int:
    """``channels`` times ``width``, rounded to a positive multiple of ``divisor``.

    Raises :class:`UserError` unless ``width`` is positive.
    """
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width <= 16:
        raise UserError(f"width: given {width!r}, expected a factor of the channels above 0, such as 0.5")
    return max(divisor, round(channels * width / divisor) * divisor)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the global averages of all channels (SENet).

    (N, C, H, W) -> (N, C, H, W); ``squeezed`` is the width of the hidden layer.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Scale ``features`` (N, C, H, W)."""
        gates: Tensor = self.gate(features)
        return features * gates
