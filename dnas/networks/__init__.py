"""The published discrete networks, by name, and field-of-view arithmetic."""

from dnas.networks import deeplab, dwrseg, eseg, fasterseg, regnet, regseg  # each registers its networks
from dnas.networks.field_of_view import field_of_view
from dnas.networks.lookup import TORCHVISION, TorchvisionSegmentation, network_by_name, network_names
from dnas.networks.registry import (
    NetworkRegistry,
    PaperFacts,
    PrintedFigure,
    create_network,
    list_networks,
    network_facts,
    register_network,
)
from dnas.networks.segmentation import HasAuxiliaryHeads, SegmentationNetwork
from dnas.receptive_field import DeclaresLayer, Field, Layer, dilation_bounds, field_of_layers

__all__ = [
    "TORCHVISION",
    "DeclaresLayer",
    "Field",
    "HasAuxiliaryHeads",
    "Layer",
    "NetworkRegistry",
    "PaperFacts",
    "PrintedFigure",
    "SegmentationNetwork",
    "TorchvisionSegmentation",
    "create_network",
    "deeplab",
    "dilation_bounds",
    "dwrseg",
    "eseg",
    "fasterseg",
    "field_of_layers",
    "field_of_view",
    "list_networks",
    "network_by_name",
    "network_facts",
    "network_names",
    "register_network",
    "regnet",
    "regseg",
]
