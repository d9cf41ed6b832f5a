"""An exported file as a network that takes images in 0 to 1: resize, normalisation, batches and class order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as F

from dnas.data.decode import resize_image
from dnas.errors import UserError
from dnas.export.class_order import class_order
from dnas.export.opened import ExportedFile


class FileNetwork(nn.Module):
    """Runs an exported file on RGB images in 0 to 1, of any size if the file or ``size`` says to which to resize.

    ``names`` are the classes of the output, by default those of the file: the same names in another order are mapped.
    Raises :class:`UserError` for other names, and for a file whose metadata lacks what is needed.
    """

    def __init__(
        self,
        file: ExportedFile,
        *,
        size: tuple[int, int] | None = None,
        names: Sequence[str] | None = None,
        data: str = "the data",
    ) -> None:
        super().__init__()
        self.file = file
        own = file.metadata.class_names if file.metadata else ()
        self.named = bool(own)
        if file.dtype != torch.uint8 and (file.metadata is None or len(file.metadata.mean) != 3):
            raise UserError(f"{file.path}: holds no mean and deviation of its images; export it with dnas export")
        file.input_shape(size or file.image_size or (1, 1), 1)  # refuses another size than that of the file
        self.size: tuple[int, int] | None = file.image_size or size
        order = class_order(own, names, str(file.path), data) if own and names is not None else tuple(range(len(own)))
        self.order = None if order == tuple(range(len(own))) else order
        self.to_device = file.module.device

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes, h, w), or classes (N, H, W) of a file of class maps."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        inputs = self._inputs(images)
        whole = self.file.shape[0]
        parts = [self._run(part, whole) for part in torch.split(inputs, whole or len(inputs))]
        output = torch.cat(parts).to(images.device)
        if output.ndim == 4:
            return output.float() if self.order is None else output.float()[:, list(self.order)]
        return self._class_maps(output, size)

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
        return images.to(self.to_device).contiguous()

    def _run(self, part: Tensor, batch: int | None) -> Tensor:
        """The output for a part of the images, filled up to the fixed batch size of the file."""
        count = len(part)
        if batch is not None and count < batch:
            part = torch.cat([part, part[-1:].expand(batch - count, *part.shape[1:])])
        output: Tensor = self.file.module(part)
        return output[:count]

    def _class_maps(self, classes: Tensor, size: tuple[int, int]) -> Tensor:
        if not self.named:
            raise UserError(
                f"{self.file.path}: returns class maps but holds no class names; export it with dnas export"
            )
        classes = classes.long()
        if self.order is not None:
            table = torch.empty(len(self.order), dtype=torch.long, device=classes.device)
            table[list(self.order)] = torch.arange(len(self.order), device=classes.device)
            classes = table[classes]
        if tuple(classes.shape[-2:]) != size:
            classes = functional.interpolate(classes.unsqueeze(1).float(), size=size, mode="nearest-exact")
            classes = classes.squeeze(1).long()
        return classes
