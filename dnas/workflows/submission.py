"""Predictions of Cityscapes images as the files that its test server takes."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.datasets import Cityscapes

from dnas.data import AugmentationConfig, eval_transform
from dnas.data.decode import read_image
from dnas.data.pairs import require_folder
from dnas.errors import UserError
from dnas.files import write_atomically
from dnas.progress import NoProgress, Progress
from dnas.training import InferenceConfig, autocast, resize_logits
from dnas.training.inference import Forward, predict
from dnas.workflows.networks import LoadedNetwork

_SUFFIX = "_leftImg8bit.png"


def label_ids(names: Sequence[str]) -> Tensor:
    """uint8 (classes,): the Cityscapes label id of each class, by its name; :class:`UserError` for an unknown name."""
    ids = {entry.name: entry.id for entry in Cityscapes.classes if not entry.ignore_in_eval}
    if unknown := [name for name in names if name not in ids]:
        raise UserError(f"the network has a class {unknown[0]!r}, Cityscapes has none of that name: {', '.join(ids)}")
    return torch.tensor([ids[name] for name in names], dtype=torch.uint8)


def write_submission(
    loaded: LoadedNetwork,
    root: Path,
    out: Path,
    *,
    split: str = "test",
    inference: InferenceConfig | None = None,
    confidence: float | None = None,
    device: torch.device | str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a PNG of label ids for every image of ``leftImg8bit/SPLIT`` below ``root``; returns their paths.

    A file has the size of its image and is named ``CITY_SEQUENCE_FRAME_labelIds.png``, by which the server finds it.
    No annotations are needed. ``confidence``: pixels whose class is less probable get the id 0, unlabelled, as pseudo
    labels need it (ESeg, section 4.4). ``resume``: files that are already in ``out`` are kept; without it ``out`` must
    hold none.
    """
    if loaded.labels is None or loaded.augmentation is None:
        raise UserError(f"{loaded.name}: its classes are unknown; give the run folder of a retraining on Cityscapes")
    ids = label_ids(loaded.labels.names)
    folder = require_folder(root / "leftImg8bit" / split, "unpack leftImg8bit_trainvaltest.zip into the root")
    images = sorted(folder.glob(f"*/*{_SUFFIX}"))
    if not images:
        raise UserError(f"{folder}: contains no images CITY/CITY_SEQUENCE_FRAME{_SUFFIX}")
    files = [out / f"{path.name.removesuffix(_SUFFIX)}_labelIds.png" for path in images]
    if not resume and (found := next(out.glob("*.png"), None)) is not None:
        raise UserError(f"{found}: is there already; continue with --resume, or give another folder")
    progress = progress or NoProgress()
    progress.begin(f"predicting {len(images)} images", len(images))
    network, options = loaded.network.to(device).eval(), inference or InferenceConfig()

    def forward(batch: Tensor) -> Tensor:
        with autocast(torch.device(device), "auto"):
            logits: Tensor = network(batch)
        return logits.float()

    for image, file in zip(images, files, strict=True):
        if not file.exists():
            prediction, probability = _predicted(image, forward, loaded.augmentation, options, device)
            labels = ids[prediction]
            if confidence is not None:
                labels[probability < confidence] = 0
            _write_png(file, labels.numpy())
        progress.advance()
    return files


def zip_submission(files: Sequence[Path], path: Path) -> None:
    """Pack the files into one archive without folders, as the server takes it; PNG files are stored as they are."""

    def write(stream: IO[bytes]) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for file in files:
                archive.write(file, file.name)

    write_atomically(path, write)


def _predicted(
    path: Path, forward: Forward, augmentation: AugmentationConfig, options: InferenceConfig, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Class indices (H, W) of one image at its own size, and their probabilities."""
    image = read_image(path)
    size = (image.shape[-2], image.shape[-1])
    transform = eval_transform(augmentation, options.input_size)
    pixels, _ = transform(tv_tensors.Image(image), tv_tensors.Mask(torch.zeros(size, dtype=torch.uint8)))
    with torch.no_grad():
        scores = predict(forward, pixels[None].to(device), size, options)
        scores = resize_logits(scores, size)
        shares = scores if options.averages else scores.softmax(dim=1)
        probability, _ = shares.max(dim=1)
        return scores.argmax(dim=1)[0].cpu(), probability[0].cpu()


def _write_png(path: Path, values: npt.NDArray[np.uint8]) -> None:
    write_atomically(path, lambda stream: Image.fromarray(values).save(stream, format="PNG"))
