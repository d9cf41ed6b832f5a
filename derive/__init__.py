"""From searched parameters to a discrete network."""

from derive.architecture import AnyArchitecture, Architecture, Branch, Cell, architecture_from
from derive.decode import Choices, decode, downsampling_layers
from derive.dilated import DilatedArchitecture, round_rates
from derive.inherit import inherit_weights
from derive.published import PublishedLogits, predicted_latency_ms
from derive.published_rule import decode_as_published, priced_as_published
from derive.sampling import sample_architectures
from derive.target import TOLERANCE, TargetedDecoder, TargetedNetwork, latency_bounds, network_price

__all__ = [
    "TOLERANCE",
    "AnyArchitecture",
    "Architecture",
    "Branch",
    "Cell",
    "Choices",
    "DilatedArchitecture",
    "PublishedLogits",
    "TargetedDecoder",
    "TargetedNetwork",
    "architecture_from",
    "decode",
    "decode_as_published",
    "downsampling_layers",
    "inherit_weights",
    "latency_bounds",
    "network_price",
    "predicted_latency_ms",
    "priced_as_published",
    "round_rates",
    "sample_architectures",
]
