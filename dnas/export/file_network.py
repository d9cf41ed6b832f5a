"""An exported file as a network that takes images in 0 to 1: it resizes, normalises and fills batches as needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as F

from dnas.data.decode import resize_image
from dnas.errors import UserError
from dnas.export.opened import ExportedFile
from dnas.input_channels import RGB


class FileNetwork(nn.Module):
    """Runs an exported file on images in 0 to 1 of any size.

    Images are resized to the size of the file, or to ``size`` for one of dynamic size. ``class_names`` are those of the
    file, empty if it was not written by this package. Raises :class:`UserError` for a file whose metadata lacks what is
    needed, and for another ``size`` than that of the file. ``image_channels``: of the images.
    """

    def __init__(self, file: ExportedFile, *, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.file = file
        self.image_channels = len(file.metadata.mean) if file.metadata and file.metadata.mean else RGB
        self.class_names = file.metadata.class_names if file.metadata else ()
        if file.dtype != torch.uint8 and (file.metadata is None or not file.metadata.mean):
            raise UserError(f"{file.path}: holds no mean and deviation of its images; export it with dnas export")
        file.input_shape(size or file.image_size or (1, 1), 1)  # refuses another size than that of the file
        self.size: tuple[int, int] | None = file.image_size or size

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, classes, h, w) of images (N, C, H, W): logits, or 1 for the class of a class map and 0 else."""
        inputs = self._inputs(images)
        whole = self.file.shape[0]
        parts = [self._run(part, whole) for part in torch.split(inputs, whole or len(inputs))]
        output = torch.cat(parts).to(images.device)
        return output.float() if output.ndim == 4 else self._one_hot(output, (images.shape[-2], images.shape[-1]))

    def _inputs(self, images: Tensor) -> Tensor:
        """The images as the file takes them."""
        resized = self.size is not None and tuple(images.shape[-2:]) != self.size
        if resized or self.file.dtype == torch.uint8:
            stored = (images * 255).round().to(torch.uint8)  # exact: a dataset divides bytes by 255
            if resized and self.size is not None:
                stored = resize_image(stored, self.size)
            images = stored if self.file.dtype == torch.uint8 else F.to_dtype(stored, torch.float32, scale=True)
        if self.file.dtype != torch.uint8 and self.file.metadata is not None:
            images = F.normalize(images, list(self.file.metadata.mean), list(self.file.metadata.std))
        if self.file.channels_last:
            images = images.permute(0, 2, 3, 1)
        return images.to(self.file.module.device).contiguous()

    def _run(self, part: Tensor, batch: int | None) -> Tensor:
        """The output for a part of the images, filled up to the fixed batch size of the file."""
        count = len(part)
        if batch is not None and count < batch:
            part = torch.cat([part, part[-1:].expand(batch - count, *part.shape[1:])])
        output: Tensor = self.file.module(part)
        return output[:count]

    def _one_hot(self, classes: Tensor, size: tuple[int, int]) -> Tensor:
        """Class maps (N, h, w), enlarged to ``size`` without mixing classes, as scores."""
        if not self.class_names:
            raise UserError(
                f"{self.file.path}: returns class maps but holds no class names; export it with dnas export"
            )
        scores = functional.one_hot(classes.long(), len(self.class_names)).permute(0, 3, 1, 2).float()
        if tuple(scores.shape[-2:]) != size:
            scores = functional.interpolate(scores, size=size, mode="nearest-exact")
        return scores
