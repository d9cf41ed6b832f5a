"""The optimiser of a supernet's weights, and weights stored as bf16 plus the low bits of float32."""

from dnas.search.optim.split_bf16 import SplitBF16Weight
from dnas.search.optim.supernet_sgd import SupernetSGD

__all__ = ["SplitBF16Weight", "SupernetSGD"]
