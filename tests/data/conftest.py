from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Writer = Callable[..., Path]


@pytest.fixture
def write() -> Writer:
    """Write an array as an image file and create its folders; the suffix determines the format."""

    def write_array(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(array)
        if mode == "P":
            image = Image.fromarray(array, mode="L") if array.ndim == 2 else image
            image.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
        image.save(path)
        return path

    return write_array


@pytest.fixture
def picture() -> Callable[[int, tuple[int, int]], np.ndarray]:
    """A seeded random RGB image, uint8 (H, W, 3)."""
    return lambda seed, size: np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture
def make_folder(tmp_path: Path, write: Writer, picture) -> Callable[..., Path]:
    """A dataset in the ``folder`` layout: classes a, b, c; masks of indices; returns its root."""

    def make(splits=("train", "val"), count=3, size=(10, 14), masks="labels", classes: str | None = None) -> Path:
        root = tmp_path / "set"
        for split in splits:
            for index in range(count):
                write(root / split / "images" / f"im{index}.png", picture(index, size))
                mask = np.random.default_rng(index).integers(0, 3, size, dtype=np.uint8)
                write(root / split / masks / f"im{index}.png", mask)
        text = classes or (
            "classes:\n  - {name: a, colour: [255, 0, 0]}\n  - {name: b, colour: [0, 255, 0]}\n"
            "  - {name: c, colour: [0, 0, 255]}\nignore: 9\nignore_colour: [0, 0, 0]\n"
        )
        (root / "classes.yaml").write_text(text)
        return root

    return make
