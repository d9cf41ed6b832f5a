"""Weights in two halves: what bf16 keeps of them, to compute by, and the rest, to descend by.

Under autocast to bf16 a convolution rounds its weight every time anew, and a rounded copy costs half as much memory
again. But the rounded weight is the upper half of a float32 number already, and needs no copy where both halves lie
apart: as 16-bit integers, ``rounded * 2**16 + rest`` are the bits of the number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EVERYTHING = slice(None)


class SplitWeight:
    """A float32 parameter that is turned, in its own memory, into a bf16 one and its rest, until :meth:`join`.

    rest: the rest of all values, whose bits are integers, although its type is that of the parameter: a file of both
    then holds their memory once.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        """``weight`` is bf16 from here on: rounded to the nearest, halfway away from zero."""
        values = flat(weight.detach())
        if values.dtype != torch.float32:
            raise TypeError(f"only a float32 weight has two halves of bf16, this one is {values.dtype}")
        self._weight, self._values = weight, values
        rounded, self.rest = values.view(torch.bfloat16).chunk(2)
        self._rounded_bits, self._rest_bits = rounded.view(torch.int16), self.rest.view(torch.int16)
        self.write(values.clone())
        self._set(rounded)

    def read(self, place: Tensor, part: slice = EVERYTHING) -> Tensor:
        """``place``, (values,) of float32, filled with a part of the values, in the order in which they lie."""
        bits = place.view(torch.int32)
        bits.copy_(self._rounded_bits[part]).bitwise_left_shift_(16).add_(self._rest_bits[part])
        return place

    def write(self, values: Tensor, part: slice = EVERYTHING) -> None:
        """Set a part of the values to (values,) of float32, whose memory is used up for it."""
        bits = values.view(torch.int32)
        self._rest_bits[part].copy_(bits)  # their lower half
        self._rounded_bits[part].copy_(bits.add_(1 << 15).bitwise_right_shift_(16))

    def join(self) -> None:
        """Make the weight a float32 parameter again, with all digits."""
        values = self.read(torch.empty_like(self._values))
        self._values.copy_(values)
        self._set(self._values)

    def _set(self, values: Tensor) -> None:
        self._weight.data = values.as_strided(self._weight.shape, self._weight.stride())


def flat(values: Tensor) -> Tensor:
    """All values in the order in which they lie in memory."""
    return values.as_strided((values.numel(),), (1,))
