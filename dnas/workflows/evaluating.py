"""Scoring exported files on images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dnas.data import AugmentationConfig, SegmentationDataset
from dnas.export import open_file
from dnas.export.file_network import FileNetwork
from dnas.progress import Progress
from dnas.training import Evaluation, evaluate

IN_0_TO_1 = AugmentationConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""The normalisation of images for :class:`FileNetwork`, which normalises them as its file needs it."""


@dataclass(frozen=True, kw_only=True)
class FileEvaluation:
    """The scores of a file, and what the user should know about them."""

    scores: Evaluation
    backend: str
    precision: str
    notes: tuple[str, ...]


def evaluate_file(
    path: str | Path,
    dataset: SegmentationDataset,
    *,
    size: tuple[int, int] | None = None,
    device: str = "cpu",
    backend: str | None = None,
    threads: int | None = None,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> FileEvaluation:
    """Score an exported file on all images of ``dataset``, at the full size of their labels.

    Images are resized to the input size of the file, or to ``size`` for one of dynamic size. Class names decide: the
    same names in another order are mapped, others are a :class:`UserError`.
    """
    file = open_file(path, device=device, backend=backend, threads=threads)
    network = FileNetwork(file, size=size, names=dataset.labels.names, data=dataset.name)
    notes = []
    if not network.named:
        notes.append(f"{path}: holds no class names, its classes are taken in the order of {dataset.name}")
    if network.size is not None and network.size != dataset.image_size:
        given, own = ("x".join(map(str, sides)) for sides in (dataset.image_size, network.size))
        notes.append(f"{path}: images such as {given} are resized to its input size {own}")
    scores = evaluate(
        network,
        dataset,
        IN_0_TO_1,
        device=file.module.device,
        batch_size=batch_size,
        precision="fp32",
        progress=progress,
    )
    return FileEvaluation(scores=scores, backend=file.backend, precision=file.precision, notes=tuple(notes))
