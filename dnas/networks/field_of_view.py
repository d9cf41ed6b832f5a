"""The field of view of a network, computed as in the papers."""

from __future__ import annotations

from torch import nn

from dnas.networks.segmentation import SegmentationNetwork
from dnas.receptive_field import field_of_outputs


def field_of_view(network: nn.Module, *, input_size: tuple[int, int] = (64, 64), channels: int = 3) -> int:
    """Field of view in pixels: of the backbone of a :class:`SegmentationNetwork`, else of the network's outputs.

    See :func:`dnas.receptive_field.field_of_outputs` for how it is computed.
    """
    module = network.backbone if isinstance(network, SegmentationNetwork) else network
    return field_of_outputs(module, input_size=input_size, channels=channels)
