"""Networks for images of other than three channels."""

from __future__ import annotations

import math

import torch
from torch import nn

from dnas.errors import UserError

RGB = 3


def input_channels(network: nn.Module) -> int:
    """The channels of the images that ``network`` takes: 3 if a convolution has 3, else those of its first one."""
    found = [module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    return RGB if RGB in found or not found else found[0]


@torch.no_grad()
def with_input_channels(network: nn.Module, channels: int) -> nn.Module:
    """``network``, built for RGB images, with first convolutions for images of ``channels`` channels.

    Every convolution of three input channels is replaced by one with fresh weights of the same standard deviation, but
    for the larger or smaller sum; they are drawn from torch's global generator. Raises :class:`UserError` for networks
    without such a convolution.
    """
    if channels == RGB:
        return network
    found = [
        (module, name, child)
        for module in network.modules()
        for name, child in module.named_children()
        if type(child) is nn.Conv2d and child.in_channels == RGB and child.groups == 1
    ]
    if not found:
        raise UserError(f"{type(network).__name__}: has no convolution of RGB images, which {channels} channels need")
    for module, name, child in found:
        setattr(module, name, _widened(child, channels))
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
