"""Backbones of timm as feature maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class TimmBackbone(nn.Module):
    """timm's ``name`` without its classifier: images (N, 3, H, W) to feature maps at 1/4 to 1/32, finest first.

    ``output_stride`` 8 or 16 replaces later strides by dilation; the last maps then have that stride. ``context`` is
    applied to the last map. ``pretrained`` loads timm's ImageNet weights (needs a network connection or timm's cache).
    ``channels`` holds the channels of the maps.
    """

    def __init__(self, name: str, pretrained: bool = False, output_stride: int = 32) -> None:
        super().__init__()
        import timm  # slow to import and needed only here

        options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
        features: Any = timm.create_model(
            name, pretrained=pretrained, features_only=True, out_indices=(1, 2, 3, 4), **options
        )
        self.channels: tuple[int, ...] = tuple(features.feature_info.channels())
        self.features: nn.Module = features
        self.context: nn.Module = nn.Identity()

    def add_context(self, context: nn.Module, channels: int) -> None:
        """Apply ``context``, whose result has ``channels`` channels, to the last map."""
        self.context, self.channels = context, (*self.channels[:-1], channels)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The feature maps of ``images``."""
        *maps, last = self.features(images)
        return *maps, self.context(last)
