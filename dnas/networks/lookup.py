"""Networks by name: the published ones, the small RegSeg, torchvision's and segmentation_models_pytorch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torchvision
from torch import Tensor, nn

from dnas.errors import UserError
from dnas.networks.registry import create_network, list_networks
from dnas.networks.regseg_small import regseg_small
from dnas.networks.smp import PREFIX, smp_network
from dnas.ops import resize

TORCHVISION = "torchvision:"
_UNPUBLISHED: Mapping[str, Callable[..., nn.Module]] = {"regseg_small": regseg_small}


def is_network_name(reference: str) -> bool:
    """Whether :func:`network_by_name` reads ``reference`` as the name of a network."""
    return reference in network_names() or reference.startswith(PREFIX)


def network_names() -> list[str]:
    """The names that :func:`network_by_name` knows, except ``smp:DECODER/ENCODER``, of which there are thousands."""
    return [*list_networks(), *_UNPUBLISHED, *(TORCHVISION + name for name in _torchvision_names())]


class TorchvisionSegmentation(nn.Module):
    """A segmentation network of torchvision that returns its main logits, (N, 3, H, W) to (N, classes, H, W).

    The layers keep torchvision's names (``backbone.layer4.0.conv2``, ``classifier.0.convs.1.0``); an auxiliary head
    is dropped.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.classifier = model.get_submodule("backbone"), model.get_submodule("classifier")
        # LRASPP's head reads two feature maps, the other heads only the last one.
        self._reads_all = isinstance(model, torchvision.models.segmentation.LRASPP)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes, H, W) of normalised ``images`` (N, 3, H, W)."""
        features = self.backbone(images)
        return resize(self.classifier(features if self._reads_all else features["out"]), images.shape[-2:])


def network_by_name(name: str, num_classes: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """The network ``name`` with fresh weights: (N, 3, H, W) images to logits (N, num_classes, H, W).

    ``name`` is one of :func:`dnas.networks.list_networks`, ``regseg_small``, ``torchvision:NAME`` or
    ``smp:DECODER/ENCODER``, see :func:`dnas.networks.smp.smp_network`; nothing is downloaded unless the options request
    pretrained weights. Raises :class:`UserError` for an unknown name, listing the known ones, and for options that the
    network does not accept.
    """
    options = dict(options or {})
    if name.startswith(PREFIX):
        return smp_network(name.removeprefix(PREFIX), num_classes, options)
    try:
        if name.startswith(TORCHVISION):
            return _torchvision_network(name.removeprefix(TORCHVISION), num_classes, options)
        if name in _UNPUBLISHED:
            return _UNPUBLISHED[name](num_classes, **options)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"network {name}: options {options} do not fit: {error}") from None
    if name not in list_networks():
        known = ", ".join((*network_names(), f"{PREFIX}DECODER/ENCODER"))
        raise UserError(f"unknown network {name!r}; known networks: {known}")
    return create_network(name, num_classes, **options)


def _torchvision_names() -> list[str]:
    return list(torchvision.models.list_models(module=torchvision.models.segmentation))


def _torchvision_network(name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    if name not in _torchvision_names():
        raise UserError(f"torchvision has no segmentation network {name!r}; known: {', '.join(_torchvision_names())}")
    chosen = {"weights": None, "weights_backbone": None, **options}
    return TorchvisionSegmentation(torchvision.models.get_model(name, num_classes=num_classes, **chosen))
