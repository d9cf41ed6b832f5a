"""Example images: class maps in the dataset's colours, downsized and encoded for the page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dnas.report.data import ClassLabels, Example
from dnas.report.style import new_figure, styled

_WIDEST = 480
_WRONG = (213, 94, 0)


def palette(labels: ClassLabels) -> NDArray[np.uint8]:
    """Colours (256, 3) by class index; ignored and undefined indices are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(labels.colours)] = np.asarray(labels.colours, dtype=np.uint8).reshape(-1, 3)
    table[labels.ignore] = 0
    return table


def colour_map(mask: NDArray[np.integer[Any]], labels: ClassLabels) -> NDArray[np.uint8]:
    """Class indices (H, W) as colours (H, W, 3) uint8."""
    coloured: NDArray[np.uint8] = palette(labels)[mask]
    return coloured


def mistakes(example: Example, labels: ClassLabels) -> NDArray[np.uint8]:
    """The image in grey (H, W, 3) uint8 with every wrong pixel in vermilion; ignored pixels do not count as wrong."""
    if example.truth is None:
        raise ValueError("mistakes need the ground truth")
    grey = example.image.mean(axis=2, keepdims=True) * 0.55 + 100
    result = np.repeat(grey, 3, axis=2).astype(np.uint8)
    wrong = (example.prediction != example.truth) & (example.truth != labels.ignore)
    result[wrong] = _WRONG
    return result


def wrong_share(example: Example, labels: ClassLabels) -> float:
    """The fraction of labelled pixels with a wrong prediction; 0 if no pixel is labelled."""
    if example.truth is None:
        raise ValueError("mistakes need the ground truth")
    counted = example.truth != labels.ignore
    wrong = (example.prediction != example.truth) & counted
    return float(wrong.sum() / max(1, counted.sum()))


def classes_present(examples: Sequence[Example], labels: ClassLabels) -> list[int]:
    """The class indices that occur in any prediction or ground truth, in ascending order."""
    masks = [mask for example in examples for mask in (example.prediction, example.truth) if mask is not None]
    seen = {int(number) for mask in masks for number in np.unique(mask)}
    return sorted(number for number in seen if 0 <= number < len(labels.names))


def any_ignored(examples: Sequence[Example], labels: ClassLabels) -> bool:
    """Whether any ground truth has ignored pixels."""
    return any(bool((example.truth == labels.ignore).any()) for example in examples if example.truth is not None)


def encode_photo(image: NDArray[np.uint8]) -> bytes:
    """An image (H, W, 3) as JPEG, at most 480 pixels wide."""
    return _encode(_shrink(Image.fromarray(image), Image.Resampling.LANCZOS), format="JPEG", quality=82, optimize=True)


def encode_map(mask: NDArray[np.integer[Any]], labels: ClassLabels) -> bytes:
    """Class indices (H, W) as a PNG in the exact colours of the classes, at most 480 pixels wide."""
    picture = Image.fromarray(mask.astype(np.uint8))
    picture.putpalette(palette(labels).tobytes())
    return _encode(_shrink(picture, Image.Resampling.NEAREST), format="PNG", optimize=True)


def _shrink(picture: Image.Image, method: Image.Resampling) -> Image.Image:
    if picture.width <= _WIDEST:
        return picture
    return picture.resize((_WIDEST, max(1, round(picture.height * _WIDEST / picture.width))), method)


def _encode(picture: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, **options)
    return stream.getvalue()


@styled
def examples_sheet(examples: Sequence[Example], labels: ClassLabels) -> Figure:
    """Image, ground truth and prediction side by side, one row per example, as a single figure."""
    if not examples:
        raise ValueError("no examples to draw")
    with_truth = any(example.truth is not None for example in examples)
    titles = ["image", "ground truth", "prediction"] if with_truth else ["image", "prediction"]
    height, width = examples[0].image.shape[:2]
    column = 3.2
    figure = new_figure(column * len(titles), (column * height / width + 0.05) * len(examples) + 0.3)
    grid = figure.subplots(len(examples), len(titles), squeeze=False)
    for row, example in zip(grid, examples, strict=True):
        maps = [example.truth, example.prediction] if with_truth else [example.prediction]
        pictures = [example.image, *(None if mask is None else colour_map(mask, labels) for mask in maps)]
        for axes, picture in zip(row, pictures, strict=True):
            axes.set_axis_off()
            if picture is not None:
                axes.imshow(picture, interpolation="nearest" if picture is not example.image else "antialiased")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    return figure
