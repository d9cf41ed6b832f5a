"""The initial weights of a training: of a run, a file, or a library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnas.errors import UserError
from dnas.networks import TORCHVISION, network_by_name
from dnas.runs import RunFolder
from dnas.training.initial_weights import InitialWeights, read_weights, take_weights
from dnas.workflows.networks import build_network

LIBRARIES = ("timm", "torchvision")


def initialise(
    network: nn.Module, init: str, description: Mapping[str, Any], class_names: Sequence[str]
) -> InitialWeights:
    """Copy the weights that ``init`` names into ``network``; returns what was taken and what was not.

    ``init``: the run folder of a retraining (its best weights), a file of weights, ``timm`` (ImageNet weights of the
    backbone) or ``torchvision`` (all weights that torchvision has trained). ``description`` is the network's, as in
    :func:`dnas.workflows.networks.build_network`. ``class_names`` are those of the data: of a run with classes of other
    names, or in another order, the layers that predict them are left out. Raises :class:`UserError` if there are no
    weights for this network.
    """
    if init in LIBRARIES:
        return take_weights(network, _library_weights(init, description, len(class_names)), init)
    path = Path(init)
    if path.is_dir():
        run = RunFolder.open(path, "retrain")
        weights = run.load_weights("best")
        if list(run.configuration.get("classes", ())) != list(class_names):
            of_classes = class_layers(description, len(class_names), init)
            weights = {name: tensor for name, tensor in weights.items() if name not in of_classes}
        return take_weights(network, weights, init)
    if path.is_file():
        return take_weights(network, read_weights(path), init)
    raise UserError(f"--init {init}: no run folder and no file; expected one, or {' or '.join(LIBRARIES)}")


def class_layers(description: Mapping[str, Any], num_classes: int, source: str) -> set[str]:
    """Names of the tensors whose shape depends on the number of classes."""
    with torch.device("meta"):
        shapes = [
            {name: tensor.shape for name, tensor in build_network(description, count, source).state_dict().items()}
            for count in (num_classes, num_classes + 1)
        ]
    return {name for name, shape in shapes[0].items() if shapes[1].get(name) != shape}


def _library_weights(library: str, description: Mapping[str, Any], num_classes: int) -> dict[str, Tensor]:
    name, options = str(description.get("name", "a derived network")), dict(description.get("options") or {})
    of_torchvision = name.startswith(TORCHVISION)
    none = UserError(f"--init {library}: {name} has no weights of {library}; give a run or a file of weights")
    if "name" not in description or of_torchvision != (library == "torchvision"):
        raise none
    try:
        # A copy of the caller's random state: building a network draws its weights.
        with torch.random.fork_rng(devices=[]):
            if of_torchvision:
                # torchvision's own classes; its last layers then differ in shape and are left out.
                trained = network_by_name(name, 21, {**options, "weights": "DEFAULT"}, download=True)
                return dict(trained.state_dict())
            trained = network_by_name(name, num_classes, {**options, "pretrained": True}, download=True)
    except UserError:
        raise none from None
    except OSError as error:
        raise UserError(f"--init {library}: its weights could not be downloaded ({error})") from None
    return {key: value for key, value in trained.state_dict().items() if key.startswith("backbone.")}
