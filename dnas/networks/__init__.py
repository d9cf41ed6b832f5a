"""The published discrete networks, by name, and field-of-view arithmetic."""

from dnas.networks import (  # each registers its networks
    bisenet_v2,
    ddrnet,
    deeplab,
    dwrseg,
    eseg,
    fasterseg,
    pidnet,
    regnet,
    regseg,
    stdc,
)
from dnas.networks.field_of_view import field_of_view
from dnas.networks.lookup import (
    DOWNLOADS,
    TORCHVISION,
    TorchvisionSegmentation,
    is_network_name,
    network_by_name,
    network_names,
)
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
    "DOWNLOADS",
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
    "bisenet_v2",
    "create_network",
    "ddrnet",
    "deeplab",
    "dilation_bounds",
    "dwrseg",
    "eseg",
    "fasterseg",
    "field_of_layers",
    "field_of_view",
    "is_network_name",
    "list_networks",
    "network_by_name",
    "network_facts",
    "network_names",
    "pidnet",
    "register_network",
    "regnet",
    "regseg",
    "stdc",
]
