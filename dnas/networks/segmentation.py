"""The common structure of the published networks: backbone -> decoder -> head -> logits at the size of the image."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from dnas.ops import resize


@runtime_checkable
class HasAuxiliaryHeads(Protocol):
    """A network with heads that are trained beside the main one and do not run in inference.

    In training mode it then returns the main logits and those of the auxiliary heads.
    """

    def add_auxiliary_heads(self) -> None:
        """Add the heads, with fresh weights."""

    def remove_auxiliary_heads(self) -> None:
        """Remove them."""


class SegmentationNetwork(nn.Module):
    """A segmentation network of backbone, decoder and head.

    ``backbone`` maps images (N, 3, H, W) to a tuple of feature maps, finest first; ``decoder`` maps that tuple to one
    feature map; ``head`` maps it to class logits. The logits are resized bilinearly to the size of the images, which
    may be any size from 64 pixels up.
    """

    def __init__(self, backbone: nn.Module, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes, H, W) of normalised images (N, 3, H, W)."""
        logits: Tensor = self.head(self.decoder(self.backbone(images)))
        return resize(logits, images.shape[-2:])
