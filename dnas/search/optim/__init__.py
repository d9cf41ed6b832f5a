"""The optimiser of a supernet's weights, and weights split into bf16 and the low bits of float32."""

from dnas.search.optim.split_bf16 import SplitBF16Weight
from dnas.search.optim.supernet_sgd import SupernetSGD

__all__ = ["SplitBF16Weight", "SupernetSGD"]
