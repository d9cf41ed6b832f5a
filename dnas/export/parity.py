"""Parity check of an exported file against the PyTorch network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from dnas.errors import UserError
from dnas.input_channels import input_channels

# Largest allowed difference of a logit, relative to the largest logit, or to 1 if that is larger.
TOLERANCES = {"fp32": 1e-3, "fp16": 3e-2}

Runtime = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Largest difference of a logit, and fraction of pixels with equal argmax, over ``images`` images."""

    max_abs_difference: float
    equal_argmax: float
    images: int


def check_parity(
    network: nn.Module,
    runtime: Runtime,
    input_size: tuple[int, int],
    *,
    batch: int | None = 1,
    images: torch.Tensor | None = None,
    tolerance: float = TOLERANCES["fp32"],
    what: str = "the exported file",
) -> Parity:
    """Compare ``runtime(images)`` with the network in eval mode on seeded random images and on ``images`` (N, 3, H, W).

    Raises :class:`UserError` if a logit differs by more than ``tolerance`` times the largest logit (at least 1) or is
    not finite, or if the shapes differ. The fraction of equal argmax is only reported, as tied logits may resolve to
    either class.
    """
    reference = copy.deepcopy(network).eval().to("cpu", torch.float32)
    largest, equal, pixels, count = 0.0, 0, 0, 0
    for inputs in _batches(input_size, batch, images, input_channels(network)):
        with torch.no_grad():
            expected = reference(inputs)
        found = runtime(inputs).detach().to("cpu", torch.float32)
        if found.shape != expected.shape:
            raise UserError(f"{what} returns shape {tuple(found.shape)}, the network {tuple(expected.shape)}")
        difference = (found - expected).abs().max().item()
        allowed = tolerance * max(1.0, expected.abs().max().item())
        if not difference <= allowed:  # also catches NaN
            raise UserError(
                f"{what} differs from the PyTorch network by up to {difference:.3g} in a logit, allowed is "
                f"{allowed:.3g}; nothing was written"
            )
        largest = max(largest, difference)
        equal += int((found.argmax(1) == expected.argmax(1)).sum())
        pixels += expected[:, 0].numel()
        count += len(inputs)
    return Parity(max_abs_difference=largest, equal_argmax=equal / pixels, images=count)


def _batches(
    input_size: tuple[int, int], batch: int | None, images: torch.Tensor | None, channels: int
) -> Iterator[torch.Tensor]:
    """Random batches, of two sizes if the batch size is dynamic, then the given images."""
    generator = torch.Generator().manual_seed(0)
    for size in (1, 3) if batch is None else (batch, batch):
        yield torch.randn(size, channels, *input_size, generator=generator)
    if images is None:
        return
    if tuple(images.shape[1:]) != (channels, *input_size):
        size_text = "x".join(map(str, input_size))
        raise UserError(f"images of shape {tuple(images.shape)} given to compare, expected (N, 3, H, W) of {size_text}")
    for image in images.to("cpu", torch.float32).unsqueeze(1):
        yield image if batch is None else image.expand(batch, -1, -1, -1).contiguous()
