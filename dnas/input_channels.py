"""Networks for images of other than three channels."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dnas.errors import UserError

RGB = 3


@runtime_checkable
class TakesChannels(Protocol):
    """A convolution of its own kind, such as one whose width is a choice, that can take other numbers of channels."""

    in_channels: int

    def take_channels(self, channels: int) -> None:
        """Take maps of up to ``channels`` channels, with fresh weights as :func:`with_input_channels` draws them."""


def input_channels(network: nn.Module) -> int:
    """The channels of the images that ``network`` takes: 3 if a convolution has 3, else those of its first one.

    A network without convolutions that are known, such as an exported file, says them as ``image_channels``.
    """
    declared = getattr(network, "image_channels", None)
    if isinstance(declared, int):
        return declared
    found = [module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d | TakesChannels)]
    return RGB if RGB in found or not found else found[0]


def as_rgb(image: Tensor) -> Tensor:
    """An image (C, H, W) with three channels to look at: the first three, or the first one as grey."""
    return image[:RGB] if len(image) >= RGB else image[:1].expand(RGB, -1, -1)


@torch.no_grad()
def with_input_channels(network: nn.Module, channels: int) -> nn.Module:
    """``network``, built for RGB images, with first convolutions for images of ``channels`` channels.

    Every convolution of three input channels is replaced by one with fresh weights of the same standard deviation, but
    for the larger or smaller sum; they are drawn from torch's global generator. Raises :class:`UserError` for networks
    without such a convolution.
    """
    if channels == RGB or input_channels(network) == channels:
        return network
    found = [
        (module, name, child)
        for module in network.modules()
        for name, child in module.named_children()
        if type(child) is nn.Conv2d and child.in_channels == RGB and child.groups == 1
    ]
    own = [layer for layer in network.modules() if isinstance(layer, TakesChannels) and layer.in_channels == RGB]
    if not found and not own:
        raise UserError(f"{type(network).__name__}: has no convolution of RGB images, which {channels} channels need")
    for module, name, child in found:
        setattr(module, name, _widened(child, channels))
    for layer in own:
        layer.take_channels(channels)
    return network


def _widened(old: nn.Conv2d, channels: int) -> nn.Conv2d:
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    if old.weight.device.type != "meta":
        new.weight.normal_(0, float(old.weight.std()) * math.sqrt(RGB / channels))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    return new.train(old.training)
