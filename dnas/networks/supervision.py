"""Networks with auxiliary heads, which are trained beside the main one and do not run in inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from dnas.networks.layers import conv_bn
from dnas.networks.segmentation import SegmentationNetwork
from dnas.ops import resize


@runtime_checkable
class Tapped(Protocol):
    """A backbone or decoder that also gives the maps that auxiliary heads read."""

    def tapped(self, inputs: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """What its ``forward`` gives, and the inner maps, each (N, C, h, w)."""


class SupervisedNetwork(SegmentationNetwork):
    """A segmentation network whose backbone or decoder is :class:`Tapped`; one head reads each of their maps.

    ``makers`` make the heads, those of the backbone's maps first. In training mode with heads it returns the logits and
    then those of the heads at their own size, (N, classes, h, w), or (N, 1, h, w) for boundaries; else the logits.
    """

    def __init__(
        self, backbone: nn.Module, decoder: nn.Module, head: nn.Module, makers: Sequence[Callable[[], nn.Module]]
    ) -> None:
        super().__init__(backbone, decoder, head)
        self._makers = tuple(makers)
        self.auxiliary: nn.ModuleList | None = None

    def add_auxiliary_heads(self) -> None:
        """Add the heads, with fresh weights."""
        self.auxiliary = nn.ModuleList(make() for make in self._makers)

    def remove_auxiliary_heads(self) -> None:
        """Remove them."""
        self.auxiliary = None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:  # type: ignore[override]
        """Logits (N, classes, H, W) of normalised images (N, 3, H, W), in training followed by those of the heads."""
        if self.auxiliary is None or not self.training:
            return super().forward(images)
        features, maps = _tapped(self.backbone, images)
        joined, more = _tapped(self.decoder, features)
        logits = resize(self.head(joined), images.shape[-2:])
        return logits, *(head(one) for head, one in zip(self.auxiliary, (*maps, *more), strict=True))


class ConvHead(nn.Sequential):
    """3x3 convolution and 1x1 classifier (BiSeNet): (N, in, H, W) -> (N, classes, H, W)."""

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__(conv_bn(in_channels, channels, 3), nn.Conv2d(channels, num_classes, 1))


def _tapped(module: nn.Module, inputs: Any) -> tuple[Any, tuple[Tensor, ...]]:
    return module.tapped(inputs) if isinstance(module, Tapped) else (module(inputs), ())
