"""Decoders of segmentation_models_pytorch on encoders of timm; the package is an extra of dnas."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dnas.errors import UserError

PREFIX = "smp:"
_EXAMPLE = f"{PREFIX}unet/resnet18"


class SmpSegmentation(nn.Module):
    """A network of segmentation_models_pytorch for images of any size, (N, 3, H, W) to (N, classes, H, W).

    Images are padded with zeros at the bottom and the right to a multiple of the encoder's stride.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = model.encoder
        self.decoder: nn.Module = model.decoder
        self.head: nn.Module = model.segmentation_head
        self.stride = int(model.encoder.output_stride)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of normalised ``images``."""
        height, width = images.shape[-2:]
        padded = F.pad(images, [0, -width % self.stride, 0, -height % self.stride])
        logits: Tensor = self.head(self.decoder(self.backbone(padded)))
        return logits[..., :height, :width]


def smp_network(name: str, num_classes: int, options: Mapping[str, Any]) -> SmpSegmentation:
    """The network ``DECODER/ENCODER``, such as ``unet/resnet18``: an architecture of the package, an encoder of timm.

    ``options`` are those of the package's ``create_model``; ``pretrained: true`` loads timm's ImageNet weights of the
    encoder. Raises :class:`UserError` if the package is not installed or does not know the names.
    """
    decoder, slash, encoder = name.partition("/")
    if not slash or not decoder or not encoder:
        raise UserError(f"{PREFIX}{name}: expected {PREFIX}DECODER/ENCODER, for example {_EXAMPLE}")
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        raise UserError(f"{PREFIX}{name}: needs segmentation_models_pytorch; pip install 'dnas[smp]'")
    smp = importlib.import_module("segmentation_models_pytorch")
    chosen = dict(options)
    weights = "imagenet" if chosen.pop("pretrained", False) else None
    try:
        model = smp.create_model(decoder, f"tu-{encoder}", weights, classes=num_classes, **chosen)
    except KeyError as error:
        raise UserError(f"{PREFIX}{name}: {error.args[0]}") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{PREFIX}{name}: options {chosen} do not fit: {error}") from None
    return SmpSegmentation(model)
