"""From images to scores at evaluation: several scales, mirrored images, sliding windows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Annotated

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from dnas.config import Field, config
from dnas.training.losses import resize_logits

Forward = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) to logits (N, classes, h, w), float32."""

_Side = Annotated[int, Field(ge=8, le=16384)]


@config
class InferenceConfig:
    """How a network is applied to the images that it is evaluated on; by default once, to the whole image.

    input_size: (height, width) to which images are resized before the network; labels keep their size, and predictions
        are resized to it (DWRSeg, section 4.1; RegSeg v3, Table 8 at 768x1536). Null is the image's own size.
    scales: factors of the input size. With several, the class probabilities are averaged.
    flip: average with the prediction for the mirrored image.
    window: (height, width) of a sliding window; the logits of overlapping windows are averaged. Null is the image.
    stride: (rows, columns) between windows; null is two thirds of the window.
    """

    input_size: tuple[_Side, _Side] | None = None
    scales: tuple[Annotated[float, Field(gt=0, le=16)], ...] = (1.0,)
    flip: bool = False
    window: tuple[_Side, _Side] | None = None
    stride: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None

    @property
    def averages(self) -> bool:
        """Whether class probabilities of several views are averaged."""
        return len(self.scales) > 1 or self.flip

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if not self.scales:
            raise ValueError("scales: given none, expected at least one; 1.0 is the input size")
        if self.stride is not None:
            if self.window is None:
                raise ValueError("stride: is for a sliding window, but there is no window")
            if self.stride[0] > self.window[0] or self.stride[1] > self.window[1]:
                raise ValueError(
                    f"stride: given {self.stride}, at most the window {self.window}: pixels would be missed"
                )
        return self


def predict(forward: Forward, images: Tensor, size: tuple[int, int], options: InferenceConfig) -> Tensor:
    """Scores of ``images`` (N, 3, H, W), whose largest along the classes is the prediction.

    One scale without mirroring gives logits (N, classes, h, w) as the network returns them. Several views give the mean
    of the class probabilities at ``size`` (height, width). ``options.input_size`` is not used here: images are resized
    when they are read.
    """
    views = list(itertools.product(options.scales, (False, True) if options.flip else (False,)))
    if len(views) == 1:
        return _logits(forward, _scaled(images, views[0][0]), options)
    total: Tensor | None = None
    for scale, mirrored in views:
        view = _scaled(images, scale)
        logits = _logits(forward, view.flip(-1) if mirrored else view, options)
        share = resize_logits(logits.flip(-1) if mirrored else logits, size).softmax(dim=1)
        total = share if total is None else total + share
    assert total is not None
    return total / len(views)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """The first pixels of the windows along one axis; the last window ends with the axis.

    A window that is longer than the axis starts at 0 and is cut off.
    """
    if window >= length:
        return [0]
    return [*range(0, length - window, stride), length - window]


def _scaled(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    height, width = (max(1, round(side * scale)) for side in images.shape[-2:])
    return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def _logits(forward: Forward, images: Tensor, options: InferenceConfig) -> Tensor:
    if options.window is None:
        return forward(images)
    height, width = options.window
    stride = options.stride or (max(1, height * 2 // 3), max(1, width * 2 // 3))
    rows, columns = images.shape[-2:]
    total: Tensor | None = None
    count = torch.zeros(1, 1, rows, columns, device=images.device)
    for top, left in itertools.product(
        window_starts(rows, height, stride[0]), window_starts(columns, width, stride[1])
    ):
        area = (..., slice(top, top + height), slice(left, left + width))
        tile = images[area]
        logits = resize_logits(forward(tile), (tile.shape[-2], tile.shape[-1]))
        if total is None:
            total = logits.new_zeros(len(images), logits.shape[1], rows, columns)
        total[area] += logits
        count[area] += 1
    assert total is not None
    return total / count
