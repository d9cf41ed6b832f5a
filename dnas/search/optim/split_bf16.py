"""Float32 weights stored as their bf16 rounding, which passes compute with, and the low bits that SGD needs.

Under autocast to bf16 a convolution rounds its float32 weight anew in every pass, and keeping a rounded copy costs half
as much memory again. But the rounding is the upper half of a float32 number already: as 16-bit integers,
``rounded * 2**16 + low_bits`` are the bits of the number. Stored apart, the halves need no copy, and no bit is lost
("Split SGD", Kalamkar et al. 2020, "Optimizing Deep Learning Recommender Systems Training on CPU Cluster
Architectures").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EVERYTHING = slice(None)


class SplitBF16Weight:
    """Turns a float32 parameter, in its own memory, into a bf16 parameter and its low bits, until :meth:`join`.

    low_bits: those of all values. Their bits are integers, although the type is the parameter's, so that a checkpoint
    of both stores the shared memory once.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        """``weight`` is bf16 from here on: rounded to the nearest, ties away from zero."""
        values = flat(weight.detach())
        if values.dtype != torch.float32:
            raise TypeError(f"only a float32 weight splits into bf16 and low bits, this one is {values.dtype}")
        self._weight, self._values = weight, values
        rounded, self.low_bits = values.view(torch.bfloat16).chunk(2)
        self._rounded_bits, self._low_bits = rounded.view(torch.int16), self.low_bits.view(torch.int16)
        self.write(values.clone())
        self._set(rounded)

    def read(self, out: Tensor, part: slice = EVERYTHING) -> Tensor:
        """Fill ``out``, (values,) of float32, with a part of the values in memory order; returns it."""
        bits = out.view(torch.int32)
        bits.copy_(self._rounded_bits[part]).bitwise_left_shift_(16).add_(self._low_bits[part])
        return out

    def write(self, values: Tensor, part: slice = EVERYTHING) -> None:
        """Set a part of the values to (values,) of float32, which are overwritten in the process."""
        bits = values.view(torch.int32)
        self._low_bits[part].copy_(bits)
        self._rounded_bits[part].copy_(bits.add_(1 << 15).bitwise_right_shift_(16))

    def join(self) -> None:
        """Make the weight a float32 parameter again, with all of its bits."""
        values = self.read(torch.empty_like(self._values))
        self._values.copy_(values)
        self._set(self._values)

    def _set(self, values: Tensor) -> None:
        self._weight.data = values.as_strided(self._weight.shape, self._weight.stride())


def flat(values: Tensor) -> Tensor:
    """All values of a dense tensor in memory order, as a view."""
    return values.as_strided((values.numel(),), (1,))
