"""Part 5: images per second that are read, decoded and augmented for a training on Cityscapes."""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from dnas.data import AugmentationConfig, Batches, DataConfig, batches, open_dataset, train_transform
from scripts.first_gpu.session import Row, Session, Step

CLASSES = 19


def steps(session: Session) -> list[Step]:
    workers = session.sized((0, 4, 8, os.cpu_count() or 1), (0,))
    return [
        Step("loader", f"loader, {number} workers{', cached' * cached}", partial(_throughput, number, cached))
        for number in dict.fromkeys(workers)
        for cached in (False, True)
    ]


def _throughput(workers: int, cached: bool, session: Session) -> list[Row]:
    """Of the second epoch: in the first, workers start and the cache is filled."""
    size, crop, batch = session.sized(((1024, 2048), (768, 768), 8), ((32, 64), (32, 32), 2))
    augmentation = AugmentationConfig(crop=crop, scale=(0.5, 2.0), brightness=0.3, contrast=0.3, saturation=0.3)
    count = session.sized(64, 4)
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), count, size)
        data = DataConfig(dataset="folder", root=folder, size=size, cache=cached)
        stream = batches(
            open_dataset(data, "train"),
            train_transform(augmentation),
            batch_size=batch,
            seed=0,
            epoch=0,
            shuffle=True,
            drop_last=True,
            workers=workers,
            pin_memory=session.device.type == "cuda",
        )
        try:
            _epoch_seconds(stream, 0)
            seconds = _epoch_seconds(stream, 1)
        finally:
            stream.close()
    return [{"workers": workers, "cached": cached, "size": size, "crop": crop, "images_per_s": count / seconds}]


def _epoch_seconds(stream: Batches, epoch: int) -> float:
    stream.set_epoch(epoch)
    started = time.perf_counter()
    for _ in stream:
        pass
    return time.perf_counter() - started


def _write(root: Path, count: int, size: tuple[int, int]) -> None:
    """PNG files that take about as long to decode as photographs: smooth areas with noise."""
    classes = [{"name": f"class {number}"} for number in range(CLASSES)]
    (root / "classes.yaml").write_text(yaml.safe_dump({"classes": classes}))
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / "train" / kind).mkdir(parents=True)
    for number in range(count):
        coarse = generator.integers(0, 220, (size[0] // 32, size[1] // 32, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
        noisy = np.clip(smooth.astype(np.int16) + generator.integers(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        mask = generator.integers(0, CLASSES, (size[0] // 32, size[1] // 32), dtype=np.uint8)
        Image.fromarray(noisy).save(root / "train" / "images" / f"{number}.png", compress_level=1)
        Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST).save(
            root / "train" / "labels" / f"{number}.png", compress_level=1
        )
