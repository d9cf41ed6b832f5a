"""Predictions of a trained network or an exported file: class maps, overlays and probabilities of images and videos."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from dnas.data import AugmentationConfig, Labels
from dnas.data.transforms import EvalTransform
from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.export import is_exported_file, open_file
from dnas.export.file_network import FileNetwork
from dnas.files import write_atomically
from dnas.input_channels import as_rgb, input_channels
from dnas.progress import NoProgress, Progress
from dnas.training import resize_logits
from dnas.training.inference import window_starts
from dnas.workflows.evaluating import file_device, in_0_to_1
from dnas.workflows.exporting import run_data
from dnas.workflows.networks import load_network
from dnas.workflows.pictures import Picture, Reading

KINDS = ("classes", "overlays", "probabilities")
Keep = Callable[[slice, slice, Tensor], None]
"""Receives rows, columns and scores (classes, rows, columns) of a part of an image."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Images are predicted in tiles of ``size`` (height, width) that overlap by ``overlap`` pixels.

    Of each tile the middle is used: half of the overlap is dropped on every side that has a neighbour.
    """

    size: tuple[int, int]
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < min(self.size):
            raise UserError(
                f"overlap {self.overlap}: expected 0 to {min(self.size) - 1}, less than a side of the tiles"
            )


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A network with all that is needed to apply it to images: classes, normalisation, sizes, device.

    ``size``: (height, width) to which whole images are resized; None leaves them as they are. ``has_scores``: whether
    the network gives more than the class of a pixel. ``reading``: how its images are read.
    """

    network: nn.Module
    labels: Labels
    augmentation: AugmentationConfig
    device: torch.device
    size: tuple[int, int] | None = None
    tiles: Tiles | None = None
    has_scores: bool = True
    reading: Reading = field(default_factory=Reading)

    def predict(self, image: Tensor, keep: Keep) -> npt.NDArray[np.uint8]:
        """The classes (H, W) of an image uint8 (channels, H, W).

        ``keep`` is called with rows, columns and scores (classes, rows, columns) of each part of the image.
        """
        height, width = image.shape[-2:]
        classes = np.empty((height, width), np.uint8)
        for rows, columns, scores in self._parts(image):
            classes[rows, columns] = scores.argmax(dim=0).to(torch.uint8).cpu().numpy()
            keep(rows, columns, scores)
        return classes

    def _parts(self, image: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows and columns that a tile decides, and their scores; without tiles the whole image."""
        height, width = int(image.shape[-2]), int(image.shape[-1])
        if self.tiles is None:
            yield slice(0, height), slice(0, width), self._scores(image, self.size)
            return
        rows, columns = self.tiles.size
        spans = kept_spans(height, rows, self.tiles.overlap), kept_spans(width, columns, self.tiles.overlap)
        for (top, first, last), (left, start, end) in itertools.product(*spans):
            tile = image[:, top : top + rows, left : left + columns]
            missing = (0, columns - tile.shape[-1], 0, rows - tile.shape[-2])
            if any(missing):  # an image smaller than a tile
                tile = functional.pad(tile[None].float(), missing, mode="replicate")[0].to(torch.uint8)
            scores = self._scores(tile, None)
            yield slice(first, last), slice(start, end), scores[:, first - top : last - top, start - left : end - left]

    def _scores(self, image: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Scores (classes, H, W) of an image uint8 (channels, H, W), computed at ``size``."""
        mask = torch.zeros(1, dtype=torch.uint8)
        pixels, _ = EvalTransform(self.augmentation, size)(image, mask)
        with torch.no_grad():
            scores: Tensor = self.network(pixels[None].to(self.device)).float()
            return resize_logits(scores, (image.shape[-2], image.shape[-1]))[0]


def kept_spans(length: int, tile: int, overlap: int) -> list[tuple[int, int, int]]:
    """The tiles along one axis: first pixel of each, and the range of pixels that it decides.

    The ranges partition 0 to ``length``; two tiles meet in the middle of their overlap.
    """
    starts = window_starts(length, tile, tile - overlap)
    meets = [(start + tile + following) // 2 for start, following in itertools.pairwise(starts)]
    return [(start, first, last) for start, first, last in zip(starts, [0, *meets], [*meets, length], strict=True)]


def load_predictor(
    reference: str,
    *,
    size: tuple[int, int] | None = None,
    tiles: Tiles | None = None,
    device: str = "auto",
    backend: str | None = None,
    threads: int | None = None,
    trust: bool = False,
) -> Predictor:
    """The predictor of a run of ``dnas retrain`` or of an exported file.

    Raises :class:`UserError` for a network whose classes are unknown, and for tiles of another size than that of a file
    with a fixed one.
    """
    if tiles is not None and size is not None:
        raise UserError("--size resizes whole images, --tile leaves their size as it is; give one of them")
    if is_exported_file(reference):
        file = open_file(
            reference, device=file_device(reference, device), backend=backend, threads=threads, trust=trust
        )
        network = FileNetwork(file, size=tiles.size if tiles else size)
        if not network.class_names or file.metadata is None:
            raise UserError(f"{reference}: holds no class names; export it with dnas export")
        return Predictor(
            network=network,
            labels=_labels(network.class_names, file.metadata.colours),
            augmentation=in_0_to_1(network.image_channels),
            reading=Reading(channels=network.image_channels, value_range=file.metadata.value_range),
            device=file.module.device,
            tiles=tiles,
            has_scores=not file.metadata.end_to_end,
        )
    if backend is not None:
        raise UserError(f"--backend is for exported files, {reference} runs in PyTorch")
    loaded = load_network(reference)
    if loaded.labels is None or loaded.augmentation is None:
        raise UserError(f"{reference}: has no trained weights, expected a run of dnas retrain or an exported file")
    place = resolve_device(device)
    return Predictor(
        network=loaded.network.to(place).eval(),
        labels=loaded.labels,
        augmentation=loaded.augmentation,
        device=place,
        size=size or (None if tiles else loaded.input_size),
        tiles=tiles,
        reading=Reading(
            channels=input_channels(loaded.network),
            value_range=None if loaded.run is None else run_data(loaded).range,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What was predicted, in how many seconds, and which pictures could not be read."""

    images: int
    seconds: float
    network_seconds: float
    failed: tuple[str, ...] = ()

    @property
    def fps(self) -> float:
        """Images a second, with reading and writing."""
        return self.images / max(self.seconds, 1e-9)

    @property
    def network_fps(self) -> float:
        """Images a second of normalisation, network and argmax alone."""
        return self.images / max(self.network_seconds, 1e-9)


def predict_pictures(
    predictor: Predictor,
    pictures: Sequence[Picture],
    out: Path,
    kinds: Sequence[str] = KINDS[:2],
    progress: Progress | None = None,
) -> Predicted:
    """Write the predictions of ``pictures`` to ``out/KIND/NAME``, for each of the ``kinds``.

    ``classes``: PNG of class indices, with the colours of the classes as its palette. ``overlays``: PNG of the image,
    half covered with these colours. ``probabilities``: float16 (classes, H, W) as ``.npy``. A picture that cannot be
    read is left out.
    """
    if "probabilities" in kinds and not predictor.has_scores:
        raise UserError("an end-to-end file returns class maps, not probabilities; use a file without --end-to-end")
    progress = progress or NoProgress()
    started = time.perf_counter()
    job = _Job(predictor, out, kinds, progress)
    failed = [text for text in map(job.predict, pictures) if text is not None]
    seconds = time.perf_counter() - started
    return Predicted(images=job.count, seconds=seconds, network_seconds=job.busy, failed=tuple(failed))


class _Job:
    """Predicts one picture after the other, and counts images and seconds."""

    def __init__(self, predictor: Predictor, out: Path, kinds: Sequence[str], progress: Progress) -> None:
        self._predictor, self._out, self._kinds, self._progress = predictor, out, kinds, progress
        self.count, self.busy = 0, 0.0

    def predict(self, picture: Picture) -> str | None:
        """Write the predictions of a picture; returns why that is not possible, or None."""
        try:
            for name, image in picture.frames(self._predictor.reading):
                self._one(name, image)
        except UserError as error:
            return str(error)
        return None

    def _one(self, name: str, image: Tensor) -> None:
        labels = self._predictor.labels
        started = time.perf_counter()
        path = self._out / "probabilities" / f"{name}.npy" if "probabilities" in self._kinds else None
        with _keeping(path, (labels.num_classes, *image.shape[-2:])) as keep:
            classes = self._predictor.predict(image, keep)
        self.busy += time.perf_counter() - started
        if "classes" in self._kinds:
            _write_classes(self._out / "classes" / f"{name}.png", classes, labels)
        if "overlays" in self._kinds:
            _write_overlay(self._out / "overlays" / f"{name}.png", image, classes, labels)
        self.count += 1
        self._progress.advance(1, fps=self.count / max(self.busy, 1e-9))


@contextmanager
def _keeping(path: Path | None, shape: tuple[int, ...]) -> Iterator[Keep]:
    """The function that keeps scores of an image as probabilities in the file ``path``; without one it does nothing."""
    if path is None:
        yield lambda rows, columns, scores: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    try:
        # On disk, as the probabilities of a large image may not fit into memory.
        values: Any = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)

        def keep(rows: slice, columns: slice, scores: Tensor) -> None:
            values[:, rows, columns] = scores.softmax(dim=0).cpu().numpy().astype(np.float16)

        yield keep
        values.flush()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_classes(path: Path, classes: npt.NDArray[np.uint8], labels: Labels) -> None:
    picture = Image.fromarray(classes)
    picture.putpalette(np.array(labels.colours, np.uint8).tobytes())
    _write_png(path, picture)


def _write_overlay(path: Path, image: Tensor, classes: npt.NDArray[np.uint8], labels: Labels) -> None:
    pixels = as_rgb(image).permute(1, 2, 0).numpy().astype(np.uint16)
    _write_png(path, Image.fromarray(((pixels + labels.colourise(classes)) // 2).astype(np.uint8)))


def _write_png(path: Path, picture: Image.Image) -> None:
    def write(stream: IO[bytes]) -> None:
        picture.save(stream, format="PNG")

    write_atomically(path, write)


def _labels(names: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> Labels:
    """The classes of a file; one that an earlier version wrote has no colours and gets shades of grey."""
    if len(colours) != len(names):
        shades = [round(255 * index / max(1, len(names) - 1)) for index in range(len(names))]
        colours = [(shade, shade, shade) for shade in shades]
    return Labels(tuple(names), tuple(colours))
