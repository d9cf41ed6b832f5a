"""How long the reading of training images takes: decoded or cached, finished where they are read or on the device.

``python -m scripts.bench_data`` writes generated images as PNG files into a temporary folder. It prints for an image:
the milliseconds until it is a batch on the device, those before it is finished there (the part of a worker), and what a
worker hands over. On the CPU without workers this is the CPU time of the process, which other work hardly changes.
``--data camvid:DIR`` reads real images, ``--workers N`` in the background; batches end on ``--device``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from dnas.data import AugmentationConfig, Batches, DataConfig, batches, load_data_config, open_dataset, train_transform
from dnas.data.config import CacheKind
from dnas.device import resolve_device
from dnas.files import dump_yaml, write_text

CACHES: tuple[CacheKind, ...] = (False, "disk", "memory")


def main() -> None:
    """Parse the options and print a table, or with ``--json`` one object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="NAME:DIR or a YAML file of the data; by default generated images")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--crop", type=int, nargs=2, default=(512, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = (options.size[0], options.size[1])
        data = options.data or f"folder:{write_images(Path(folder) / 'images', size, options.images)}"
        for row in measure(data, Path(folder) / "cache", options):
            print(json.dumps(row) if options.json else "  ".join(f"{name} {value}" for name, value in row.items()))


def write_images(folder: Path, size: tuple[int, int], count: int) -> Path:
    """A dataset in the layout ``folder`` of generated images."""
    generated = open_dataset(DataConfig(dataset="streets", size=size, images={"train": count}), "train")
    for index in range(count):
        image, mask = (part.as_subclass(torch.Tensor) for part in generated[index])
        for kind, pixels in (("images", image.permute(1, 2, 0)), ("labels", mask)):
            path = folder / "train" / kind / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(path)
    pairs = zip(generated.labels.names, generated.labels.colours, strict=True)
    classes = [{"name": name, "colour": list(colour)} for name, colour in pairs]
    write_text(folder / "classes.yaml", dump_yaml({"classes": classes}))
    return folder


def measure(data: str, cache: Path, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A row for every cache, and for finishing images where they are read and on the device."""
    device = resolve_device(options.device)
    augmentation = AugmentationConfig(
        crop=(options.crop[0], options.crop[1]), scale=(0.5, 2.0), brightness=0.2, contrast=0.2, saturation=0.2
    )
    for kind in CACHES:
        settings = [f"cache={json.dumps(kind)}", f"size=[{options.size[0]}, {options.size[1]}]"]
        settings += [f"cache_dir={cache}"] if kind == "disk" else []
        dataset = open_dataset(load_data_config(data, settings), "train")
        for finish_on in (None, device):
            stream = batches(
                dataset,
                train_transform(augmentation),
                batch_size=1,
                seed=0,
                epoch=0,
                shuffle=True,
                drop_last=False,
                indices=range(min(options.images, len(dataset))),
                workers=options.workers,
                pin_memory=device.type == "cuda",
                finish_on=finish_on,
            )
            handed = sum(part.nbytes for part in next(iter(stream.parts())))
            _read(stream, device, options.workers)  # fills the caches
            whole = statistics.median(_read(stream, device, options.workers) for _ in range(options.rounds))
            before = statistics.median(_read(stream.parts(), device, options.workers) for _ in range(options.rounds))
            stream.close()
            yield {
                "cache": str(kind).lower(),
                "finished": "where it is read" if finish_on is None else f"on {device}",
                "ms": round(1000 * whole / len(stream), 1),
                "ms_before_it_is_finished": round(1000 * before / len(stream), 1),
                "handed_over_mb": round(handed / 2**20, 2),
            }


def _read(items: Batches | Iterator[tuple[torch.Tensor, ...]], device: torch.device, workers: int) -> float:
    """Seconds of an epoch."""
    clock = time.process_time if device.type == "cpu" and not workers else time.perf_counter
    started = clock()
    for parts in items:
        for part in parts:
            part.to(device, non_blocking=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


if __name__ == "__main__":
    main()
