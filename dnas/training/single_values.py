"""The error of normalisations that see a single value of each channel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

from dnas.errors import UserError

_MESSAGES = ("Expected more than 1 value per channel", "Expected more than 1 spatial element")
"""Beginnings of what torch says when a normalisation in training mode has a single value to normalise."""


@contextlib.contextmanager
def single_values_explained(images: Tensor) -> Iterator[None]:
    """A context in which a network trains on ``images`` (N, C, H, W).

    If a normalisation has a single value of each channel, whose variance is 0, :class:`UserError` says what to do.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(_MESSAGES):
            raise
        count, _, height, width = images.shape
        raise UserError(
            f"a batch of {count} image{'s' * (count > 1)} of {height}x{width} pixels is too small to train on: a "
            "normalisation sees a single value of each channel; use a larger batch_size, or a larger crop or size of "
            "the images"
        ) from error
