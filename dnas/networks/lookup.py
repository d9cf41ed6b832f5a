"""Networks by name: the published ones, the small RegSeg, torchvision's and segmentation_models_pytorch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torchvision
from torch import Tensor, nn

from dnas.errors import UserError
from dnas.networks.registry import create_network, list_networks
from dnas.networks.regseg_small import regseg_small
from dnas.networks.smp import PREFIX, smp_network
from dnas.ops import resize

TORCHVISION = "torchvision:"
DOWNLOADS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")
"""Options for weights that torchvision would download."""

_MOST_VALUES, _LARGEST = 300, 10**6
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


def network_by_name(
    name: str, num_classes: int, options: Mapping[str, Any] | None = None, *, download: bool = False
) -> nn.Module:
    """The network ``name`` with fresh weights: (N, 3, H, W) images to logits (N, num_classes, H, W).

    ``name`` is one of :func:`dnas.networks.list_networks`, ``regseg_small``, ``torchvision:NAME`` or
    ``smp:DECODER/ENCODER``, see :func:`dnas.networks.smp.smp_network`. Options for pretrained weights are refused
    unless ``download``, as they may come from a file of unknown origin. Raises :class:`UserError` for an unknown name,
    listing the known ones, and for options that the network does not accept.
    """
    options = dict(options or {})
    asked = [option for option in DOWNLOADS if options.get(option) not in (None, False)]
    if asked and not download:
        raise UserError(
            f"network {name}: the option {asked[0]} would download pretrained weights: remove it, or allow that "
            "explicitly (dnas retrain NAME --download)"
        )
    values = list(_values(options))
    if len(values) > _MOST_VALUES or any(isinstance(v, (int, float)) and not abs(v) <= _LARGEST for v in values):
        raise UserError(
            f"network {name}: expected options of at most {_MOST_VALUES} values, and no number above {_LARGEST}"
        )
    if name.startswith(PREFIX):
        return smp_network(name.removeprefix(PREFIX), num_classes, options)
    if not name.startswith(TORCHVISION) and name not in network_names():
        known = ", ".join((*network_names(), f"{PREFIX}DECODER/ENCODER"))
        raise UserError(f"unknown network {name!r}; known networks: {known}")
    try:
        if name.startswith(TORCHVISION):
            return _torchvision_network(name.removeprefix(TORCHVISION), num_classes, options)
        if name in _UNPUBLISHED:
            return _UNPUBLISHED[name](num_classes, **options)
        return create_network(name, num_classes, **options)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"network {name}: options {options} do not fit: {reason}") from None


def _values(options: Any) -> Iterator[Any]:
    """All values in nested options."""
    yield options
    inner = options.values() if isinstance(options, Mapping) else options if isinstance(options, (list, tuple)) else ()
    for value in inner:
        yield from _values(value)


def _torchvision_names() -> list[str]:
    return list(torchvision.models.list_models(module=torchvision.models.segmentation))


def _torchvision_network(name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    if name not in _torchvision_names():
        raise UserError(f"torchvision has no segmentation network {name!r}; known: {', '.join(_torchvision_names())}")
    chosen = {"weights": None, "weights_backbone": None, **options}
    return TorchvisionSegmentation(torchvision.models.get_model(name, num_classes=num_classes, **chosen))
