"""Scoring trained networks and exported files on images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnas.data import AugmentationConfig, SegmentationDataset, match_classes
from dnas.data.worker_count import worker_count
from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.export import is_exported_file, open_file
from dnas.export.file_network import FileNetwork
from dnas.input_channels import RGB
from dnas.progress import Progress
from dnas.training import Evaluation, InferenceConfig, evaluate
from dnas.training.device import Precision
from dnas.workflows.networks import is_shared, load_network, require_classes


def in_0_to_1(channels: int = RGB) -> AugmentationConfig:
    """Settings that leave images of ``channels`` channels in 0 to 1, as exported files take them."""
    return AugmentationConfig(mean=(0.0,) * channels, std=(1.0,) * channels)


"""The normalisation of images for :class:`FileNetwork`, which normalises them as its file needs it."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A network and the images to score it on, whose classes have the order of the network's.

    ``notes`` is what the user should know, ``about`` what the result says about a file besides the scores.
    """

    network: nn.Module
    dataset: SegmentationDataset
    augmentation: AugmentationConfig
    device: torch.device
    precision: Precision = "auto"
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    def evaluate(
        self,
        *,
        indices: Sequence[int] | None = None,
        batch_size: int = 1,
        inference: InferenceConfig | None = None,
        boundary: float | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """:func:`dnas.training.evaluate` of the network on the images ``indices``, by default all."""
        return evaluate(
            self.network,
            self.dataset,
            self.augmentation,
            indices=indices,
            device=self.device,
            batch_size=batch_size,
            precision=self.precision,
            workers=worker_count(None, self.dataset, self.device),
            inference=dataclasses.replace(inference or InferenceConfig(), input_size=self.size),
            boundary=boundary,
            progress=progress,
        )


def open_scored(
    reference: str | Path,
    dataset: SegmentationDataset,
    *,
    size: tuple[int, int] | None = None,
    device: str = "auto",
    backend: str | None = None,
    threads: int | None = None,
    rounded: bool = False,
    trust: bool = False,
) -> Scored:
    """The run or exported file ``reference``, ready to be scored on ``dataset``, at the full size of its labels.

    Images are resized to ``size``, or to the input size of a file. Class names decide: the same names in another order
    are mapped, others are a :class:`UserError`.
    """
    if is_exported_file(reference):
        return _of_file(Path(reference), dataset, size, file_device(reference, device), backend, threads, trust)
    if backend is not None:
        raise UserError(f"--backend is for exported files, {reference} is evaluated in PyTorch")
    if not Path(reference).is_dir() and not is_shared(str(reference)):
        raise UserError(
            f"{reference}: no such folder, expected a run folder of dnas retrain, or a .onnx, .pt2 or .engine file"
        )
    loaded = load_network(str(reference), rounded=rounded)
    if loaded.augmentation is None:
        raise UserError(f"{reference}: has no trained weights, expected a run folder")
    if loaded.class_names is None:  # the run of a search by an earlier version
        require_classes(dataset.labels.num_classes, loaded.num_classes, dataset.name, str(reference))
    else:
        dataset = match_classes(dataset, loaded.class_names, str(reference))
    return Scored(
        network=loaded.network,
        dataset=dataset,
        augmentation=loaded.augmentation,
        device=resolve_device(device),
        size=size,
    )


def file_device(path: str | Path, device: str) -> str:
    """The device for an exported file: ``auto`` is the GPU where the file can run on one."""
    suffix = Path(path).suffix.lower()
    if device != "auto" or suffix == ".pt2":
        return device
    if suffix != ".onnx":
        return "cuda"
    from onnxruntime import get_available_providers

    return "cuda" if torch.cuda.is_available() and "CUDAExecutionProvider" in get_available_providers() else "cpu"


def _of_file(
    path: Path,
    dataset: SegmentationDataset,
    size: tuple[int, int] | None,
    device: str,
    backend: str | None,
    threads: int | None,
    trust: bool,
) -> Scored:
    file = open_file(path, device=device, backend=backend, threads=threads, trust=trust)
    network = FileNetwork(file, size=size)
    notes = []
    if network.class_names:
        dataset = match_classes(dataset, network.class_names, str(path))
    else:
        notes.append(f"{path}: holds no class names, its classes are taken in the order of {dataset.name}")
    if network.size is not None and network.size != dataset.image_size:
        given, own = ("x".join(map(str, sides)) for sides in (dataset.image_size, network.size))
        notes.append(f"{path}: images such as {given} are resized to its input size {own}")
    return Scored(
        network=network,
        dataset=dataset,
        augmentation=in_0_to_1(network.image_channels),
        device=file.module.device,
        precision="fp32",
        notes=tuple(notes),
        about={"file": str(path), "backend": file.backend, "precision": file.precision},
    )
