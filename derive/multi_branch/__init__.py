"""Discrete multi-branch networks, derived from the searched parameters of FasterSeg."""

from derive.multi_branch.architecture import Branch, Cell, MultiBranchArchitecture
from derive.multi_branch.branches import BranchScore, MultiBranchDerivation
from derive.multi_branch.decode import decode, downsampling_layers
from derive.multi_branch.deriver import MultiBranchDeriver
from derive.multi_branch.inherit import inherit_weights
from derive.multi_branch.published_files import PublishedLogits, predicted_latency_ms
from derive.multi_branch.published_rule import decode_as_published, priced_as_published
from derive.multi_branch.sampling import sample_architectures
from derive.multi_branch.target import TargetedDecoder, TargetedNetwork, latency_bounds, network_price

__all__ = [
    "Branch",
    "BranchScore",
    "Cell",
    "MultiBranchArchitecture",
    "MultiBranchDerivation",
    "MultiBranchDeriver",
    "PublishedLogits",
    "TargetedDecoder",
    "TargetedNetwork",
    "decode",
    "decode_as_published",
    "downsampling_layers",
    "inherit_weights",
    "latency_bounds",
    "network_price",
    "predicted_latency_ms",
    "priced_as_published",
    "sample_architectures",
]
