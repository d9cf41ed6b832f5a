"""Loading networks by name, architecture file or run folder, and opening their images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from derive import TABLE, Architecture, architecture_from
from derive.judging import searched_problem
from dnas.config import parse_config
from dnas.data import AugmentationConfig, DataConfig, Labels, SegmentationDataset, match_classes, open_dataset
from dnas.environment import process_count
from dnas.errors import UserError
from dnas.input_channels import input_channels, with_input_channels
from dnas.latency import LatencyTable
from dnas.networks import (
    DOWNLOADS,
    HasAuxiliaryHeads,
    is_network_name,
    list_networks,
    network_by_name,
    network_facts,
    network_names,
)
from dnas.runs import RunFolder, load_into
from dnas.runs.configurations import retrain_configuration
from dnas.training import RetrainConfig
from dnas.workflows.derivation import deriver_of_run

_HUB = "hub:"


def open_splits(
    config: DataConfig,
    trained_on: str = "train",
    validated_on: str = "val",
    classes: Sequence[str] | None = None,
    wanted_by: str = "",
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Training and validation images, with their classes in the order of the names ``classes`` of ``wanted_by``.

    Raises :class:`UserError` for other names, and for splits whose classes differ.
    """
    train, validation = open_dataset(config, trained_on), open_dataset(config, validated_on)
    if classes is not None:
        train = match_classes(train, classes, wanted_by)
    return train, match_classes(validation, train.labels.names, f"{train.name} {train.split}")


def channels_of(run: RunFolder) -> int:
    """The channels of the images of a run; earlier versions had RGB alone."""
    return int(run.configuration.get("data", {}).get("channels", 3))


def recorded_classes(path: Path) -> tuple[str, ...] | None:
    """The class names that the run in ``path`` is for; None if there is no run, or an earlier version wrote it."""
    if not (path / "environment.json").exists():
        return None
    names = RunFolder.open(path).configuration.get("classes")
    return tuple(map(str, names)) if isinstance(names, list) else None


PLACES = ("data.root", "data.classes", "data.listing", "data.cache", "data.cache_dir")
"""Entries of a run's configuration that may differ on resume: where the images lie and how they are kept."""


def deciding(splits: tuple[SegmentationDataset, SegmentationDataset]) -> dict[str, Any]:
    """What decides the steps of a run besides its recipe, for its configuration: classes, images, processes."""
    return {
        "classes": list(splits[0].labels.names),
        "images": {split.split: split.fingerprint() for split in splits},
        "processes": process_count(),
    }


def require_classes(found: int, expected: int, data: str, wanted_by: str) -> None:
    """Raise :class:`UserError` unless the data has the expected number of classes."""
    if found != expected:
        raise UserError(f"{data} has {found} classes, {wanted_by} expects {expected}; use matching data")


class ReorderedClasses(nn.Module):
    """A network whose logits (N, classes, H, W) are in another order: class i is its class ``order[i]``."""

    def __init__(self, network: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes, H, W) of images (N, 3, H, W)."""
        logits: Tensor = self.network(images)
        return logits.index_select(1, self.get_buffer("order"))


@dataclass(frozen=True)
class LoadedNetwork:
    """A network loaded by name, from an architecture file or from a run; unknown properties are None."""

    name: str
    network: nn.Module
    num_classes: int
    input_size: tuple[int, int] | None = None
    labels: Labels | None = None
    augmentation: AugmentationConfig | None = None
    run: RunFolder | None = None
    class_names: tuple[str, ...] | None = None


def load_network(
    reference: str,
    num_classes: int | None = None,
    *,
    rounded: bool = False,
    options: Mapping[str, Any] | None = None,
) -> LoadedNetwork:
    """The network of a run, of an architecture file, or a published network by name.

    A network of ``dnas retrain`` has its best weights. That of a search of dilation rates has those of the last epoch
    and the fractional rates, or with ``rounded`` the derived integer ones. Any other has random weights for
    ``num_classes`` (default: 19, as in Cityscapes). ``options`` are those of a network by name. A network of
    ``dnas share`` is its folder, or ``hub:USER/NAME``.
    """
    path = Path(reference)
    if options and not is_network_name(reference):
        raise UserError(f"{reference}: only a network given by its name has options")
    if is_shared(reference):
        return _shared_network(reference)
    if path.is_dir() and RunFolder.open(path).kind == "search":
        return _network_of_search(path, num_classes, rounded)
    if path.is_dir():
        return _network_of_run(path, num_classes)
    if path.is_file() or reference.endswith((".yaml", ".yml")):
        architecture = Architecture.load(path)
        classes = num_classes or architecture.num_classes or 19
        return LoadedNetwork(path.stem, architecture.build(classes), classes, architecture.input_size)
    if is_network_name(reference):
        classes, published = num_classes or 19, reference in list_networks()
        size = network_facts(reference).input_size if published else None
        return LoadedNetwork(reference, network_by_name(reference, classes, options), classes, size)
    raise UserError(
        f"{reference}: no run folder, architecture file or known network; networks: {', '.join(network_names())}"
    )


def is_shared(reference: str) -> bool:
    """Whether this names a network of ``dnas share``: ``hub:USER/NAME``, or a folder with its files."""
    files = ("config.json", "model.safetensors")
    return reference.startswith(_HUB) or all((Path(reference) / name).is_file() for name in files)


def _shared_network(reference: str) -> LoadedNetwork:
    try:
        from dnas.workflows.hub import load_from_hub
    except ImportError:
        raise UserError(f'{reference}: needs huggingface_hub; install it with: pip install "dnas[hub]"') from None
    return load_from_hub(reference.removeprefix(_HUB))


def build_network(
    description: Mapping[str, Any], num_classes: int, source: str, channels: int = 3, *, download: bool = False
) -> nn.Module:
    """The network described in the configuration of a retraining, by architecture or by name.

    ``channels``: of its images. ``download`` allows options for pretrained weights to download them.
    """
    network: nn.Module
    if "name" in description:
        network = network_by_name(str(description["name"]), num_classes, description.get("options"), download=download)
    else:
        network = architecture_from(description.get("architecture", {}), source).build(num_classes)
    network = with_input_channels(network, channels)
    if description.get("auxiliary"):
        add_auxiliary_heads(network, source)
    return network


def add_auxiliary_heads(network: nn.Module, source: str) -> None:
    """Add the heads that are trained beside the main one; :class:`UserError` if the network has none."""
    if not isinstance(network, HasAuxiliaryHeads):
        raise UserError(f"{source}: the network has no auxiliary heads; give --set auxiliary_weights=[]")
    network.add_auxiliary_heads()


def inherited_network(architecture: Architecture, search_run: Path) -> nn.Module:
    """The network of ``architecture`` with the weights that a search has trained.

    Where the supernet computes more inner channels than the network has, as in a double convolution of whose output
    only a part is read, the first ones are taken. Raises :class:`UserError` for a network of another space, and for a
    run folder without weights.
    """
    run, deriver = deriver_of_run(search_run)
    table = LatencyTable.load(search_run / TABLE) if (search_run / TABLE).exists() else None
    try:
        searched = deriver.inherit(searched_problem(run, deriver, table), architecture)
        network = architecture.build(deriver.space.num_classes)
        network = with_input_channels(network, input_channels(searched)).to(next(searched.parameters()))
        found = searched.state_dict()
        network.load_state_dict({name: _first(found[name], one.shape) for name, one in network.state_dict().items()})
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{search_run}: its weights do not fit the network: {error}") from None
    return network.train(searched.training)


def _first(values: Tensor, shape: torch.Size) -> Tensor:
    """The first entries of ``values`` in every dimension."""
    return values[tuple(map(slice, shape))] if len(shape) == values.dim() else values


def _network_of_search(path: Path, num_classes: int | None, rounded: bool) -> LoadedNetwork:
    run, deriver = deriver_of_run(path)
    classes = deriver.space.num_classes
    if num_classes not in (None, classes):
        raise UserError(f"{path}: was searched for {classes} classes, given {num_classes}")
    return LoadedNetwork(
        name=path.name,
        network=deriver.searched_network(run, rounded=rounded).eval(),
        num_classes=classes,
        input_size=deriver.space.input_size,
        class_names=recorded_classes(path),
        augmentation=deriver.space.search.augmentation,
        run=run,
    )


def _network_of_run(path: Path, num_classes: int | None) -> LoadedNetwork:
    run = RunFolder.open(path, "retrain")
    source = str(path / "configuration.yaml")
    stored = retrain_configuration(run)
    names = stored.classes
    try:
        labels = Labels(names, stored.colours)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    description = {key: value for key, value in dataclasses.asdict(stored.network).items() if value is not None}
    options = description.get("options")
    if options is not None:  # the weights are those of the run, so none have to be downloaded
        description["options"] = {key: value for key, value in options.items() if key not in DOWNLOADS}
    if num_classes not in (None, len(names)):
        raise UserError(f"{path}: was trained for {len(names)} classes, given {num_classes}")
    network = build_network(description, len(names), source, channels_of(run))
    load_into(network, run.load_weights("best"), path)
    if isinstance(network, HasAuxiliaryHeads):
        network.remove_auxiliary_heads()
    return LoadedNetwork(
        name=path.name,
        network=network.eval(),
        num_classes=len(names),
        input_size=stored.input_size,
        labels=labels,
        class_names=names,
        augmentation=parse_config(RetrainConfig, stored.retrain, source).augmentation,
        run=run,
    )
