"""Float32 weights split into their bf16 rounding, for the forward and backward pass, and the low bits, for SGD.

Under autocast to bf16, a convolution rounds its float32 weight in every forward pass, and a cached copy costs
50 % more memory. But the bf16 value is the upper half of a float32 number: as 16-bit integers,
``rounded * 2**16 + low_bits`` are the bits of the number. Stored separately, the halves need no copy and lose no bit
("Split SGD", Kalamkar et al. 2020, "Optimizing Deep Learning Recommender Systems Training on CPU Cluster
Architectures").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EVERYTHING = slice(None)


class SplitBF16Weight:
    """Splits a float32 parameter, in place, into a bf16 parameter and its low bits, until :meth:`join`.

    low_bits: the low bits of all values. They are integers stored with the parameter's dtype, so that a checkpoint of
    both stores the shared memory once.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        """``weight`` becomes bf16: rounded to nearest, ties away from zero."""
        values = flat(weight.detach())
        if values.dtype != torch.float32:
            raise TypeError(f"given a weight of {values.dtype}, expected torch.float32")
        self._weight, self._values = weight, values
        rounded, self.low_bits = values.view(torch.bfloat16).chunk(2)
        self._rounded_bits, self._low_bits = rounded.view(torch.int16), self.low_bits.view(torch.int16)
        self.write(values.clone())
        self._set(rounded)

    def read(self, out: Tensor, part: slice = EVERYTHING) -> Tensor:
        """Write a part of the values, in memory order, to ``out`` (values,) in float32; returns ``out``."""
        bits = out.view(torch.int32)
        bits.copy_(self._rounded_bits[part]).bitwise_left_shift_(16).add_(self._low_bits[part])
        return out

    def write(self, values: Tensor, part: slice = EVERYTHING) -> None:
        """Set a part of the values from ``values`` (values,) in float32, which are overwritten."""
        bits = values.view(torch.int32)
        self._low_bits[part].copy_(bits)
        self._rounded_bits[part].copy_(bits.add_(1 << 15).bitwise_right_shift_(16))

    def join(self) -> None:
        """Turn the weight back into a float32 parameter, without loss."""
        values = self.read(torch.empty_like(self._values))
        self._values.copy_(values)
        self._set(self._values)

    def _set(self, values: Tensor) -> None:
        self._weight.data = values.as_strided(self._weight.shape, self._weight.stride())


def read_all(weights: Sequence[SplitBF16Weight]) -> list[Tensor]:
    """The values of several weights, as :meth:`SplitBF16Weight.read`, by few kernels: they share new memory."""
    bits = torch.cat([weight._rounded_bits for weight in weights]).int().bitwise_left_shift_(16)
    bits.add_(torch.cat([weight._low_bits for weight in weights]))
    return list(torch.split(bits.view(torch.float32), [len(weight._low_bits) for weight in weights]))


def write_all(weights: Sequence[SplitBF16Weight], values: Sequence[Tensor]) -> None:
    """Set the values of several weights, as :meth:`SplitBF16Weight.write`, by few kernels."""
    bits, sizes = torch.cat(list(values)).view(torch.int32), [len(weight._low_bits) for weight in weights]
    low_bits = torch.split(bits.to(torch.int16), sizes)
    torch._foreach_copy_([weight._low_bits for weight in weights], list(low_bits))
    rounded_bits = torch.split(bits.add_(1 << 15).bitwise_right_shift_(16).to(torch.int16), sizes)
    torch._foreach_copy_([weight._rounded_bits for weight in weights], list(rounded_bits))


def flat(values: Tensor) -> Tensor:
    """All values of a dense tensor in memory order, as a view."""
    return values.as_strided((values.numel(),), (1,))
