"""Parity check of an exported file against the PyTorch network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from dnas.errors import UserError

# Largest allowed difference of a logit, relative to the largest logit, or to 1 if that is larger.
TOLERANCES = {"fp32": 1e-3, "fp16": 3e-2}
# Smallest allowed share of equal pixels of class maps: where two logits are nearly equal, rounding decides.
EQUAL_CLASSES = 0.99
RANDOM_EQUAL_CLASSES = 0.9  # of random images, in which such pixels are common

Runtime = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Largest difference of a logit, and fraction of pixels with equal argmax, over ``images`` images.

    ``real`` says whether these were images of a dataset and not random ones. The difference is 0 for files that return
    class maps.
    """

    max_abs_difference: float
    equal_argmax: float
    images: int
    real: bool = False


def check_parity(
    network: nn.Module | Runtime,
    runtime: Runtime,
    input_size: tuple[int, int],
    *,
    batch: int | None = 1,
    images: torch.Tensor | None = None,
    tolerance: float = TOLERANCES["fp32"],
    what: str = "the exported file",
    shape: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Parity:
    """Compare ``runtime(images)`` with the network in eval mode on ``images``, or on seeded random images without them.

    ``images`` are (N, 3, H, W), or as ``shape`` and ``dtype`` say, which are those of one image that the file takes.
    Raises :class:`UserError` if a logit differs by more than ``tolerance`` times the largest logit (at least 1) or is
    not finite, if more than 1 % of the pixels of class maps differ (10 % of random images), or if the shapes differ.
    The fraction of equal argmax of logits is only reported, as tied logits may resolve to either class.
    """
    if isinstance(network, nn.Module):
        network = copy.deepcopy(network).eval().to("cpu", torch.float32)
    shape = shape or (3, *input_size)
    least = RANDOM_EQUAL_CLASSES if images is None else EQUAL_CLASSES
    largest, equal, pixels, count = 0.0, 0, 0, 0
    for inputs in _batches(shape, dtype, batch, images):
        with torch.no_grad():
            expected = network(inputs)
        found = runtime(inputs).detach().cpu()
        if found.shape != expected.shape:
            raise UserError(f"{what} returns shape {tuple(found.shape)}, the network {tuple(expected.shape)}")
        same = _equal_classes(found, expected)
        if expected.is_floating_point():
            largest = max(largest, _difference(found.float(), expected, tolerance, what))
        elif float(same.float().mean()) < least:
            raise UserError(
                f"{what} differs from the PyTorch network in {100 * (1 - float(same.float().mean())):.2f} % of the "
                f"pixels, allowed are {100 * (1 - least):.0f} %; nothing was written"
            )
        equal += int(same.sum())
        pixels += same.numel()
        count += len(inputs)
    return Parity(max_abs_difference=largest, equal_argmax=equal / pixels, images=count, real=images is not None)


def _equal_classes(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    if expected.is_floating_point():
        return found.argmax(1) == expected.argmax(1)
    return found == expected


def _difference(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> float:
    difference = (found - expected).abs().max().item()
    allowed = tolerance * max(1.0, expected.abs().max().item())
    if not difference <= allowed:  # also catches NaN
        raise UserError(
            f"{what} differs from the PyTorch network by up to {difference:.3g} in a logit, allowed is "
            f"{allowed:.3g}; nothing was written"
        )
    return difference


def _batches(
    shape: tuple[int, ...], dtype: torch.dtype, batch: int | None, images: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """The images in batches of the right size; without images random ones. Two sizes if the batch size is dynamic."""
    if images is None:
        generator = torch.Generator().manual_seed(0)
        for size in (1, 3) if batch is None else (batch, batch):
            if dtype == torch.uint8:
                yield torch.randint(0, 256, (size, *shape), generator=generator, dtype=dtype)
            else:
                yield torch.randn(size, *shape, generator=generator)
        return
    if tuple(images.shape[1:]) != shape:
        expected = ", ".join(map(str, shape))
        raise UserError(f"images of shape {tuple(images.shape)} given to compare, expected (N, {expected})")
    images = images.to("cpu", dtype)
    if batch is None:
        yield images[:1]
        if len(images) > 1:
            yield images[1:]
        return
    for image in images.unsqueeze(1):
        yield image.expand(batch, *shape).contiguous()
