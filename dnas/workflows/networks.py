"""Loading networks by name, architecture file or run folder, and opening their images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from derive import TABLE, Architecture, architecture_from
from derive.judging import searched_problem
from dnas.config import parse_config
from dnas.data import AugmentationConfig, DataConfig, Labels, SegmentationDataset, open_dataset
from dnas.errors import UserError
from dnas.latency import LatencyTable
from dnas.networks import DOWNLOADS, list_networks, network_by_name, network_facts, network_names
from dnas.runs import RunFolder, load_into
from dnas.runs.configurations import retrain_configuration
from dnas.training import RetrainConfig
from dnas.workflows.derivation import deriver_of_run


def open_splits(config: DataConfig) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Training and validation images."""
    return open_dataset(config, "train"), open_dataset(config, "val")


def require_classes(found: int, expected: int, data: str, wanted_by: str) -> None:
    """Raise :class:`UserError` unless the data has the expected number of classes."""
    if found != expected:
        raise UserError(f"{data} has {found} classes, {wanted_by} expects {expected}; use matching data")


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


def load_network(reference: str, num_classes: int | None = None) -> LoadedNetwork:
    """The network of a run of ``dnas retrain``, of an architecture file, or a published network by name.

    A network of a run has its best weights, any other random ones for ``num_classes`` (default: 19, as in Cityscapes).
    """
    path = Path(reference)
    if path.is_dir():
        return _network_of_run(path, num_classes)
    if path.is_file() or reference.endswith((".yaml", ".yml")):
        architecture = Architecture.load(path)
        classes = num_classes or architecture.num_classes or 19
        return LoadedNetwork(path.stem, architecture.build(classes), classes, architecture.input_size)
    if reference in network_names():
        classes, published = num_classes or 19, reference in list_networks()
        size = network_facts(reference).input_size if published else None
        return LoadedNetwork(reference, network_by_name(reference, classes), classes, size)
    raise UserError(
        f"{reference}: no run folder, architecture file or known network; networks: {', '.join(network_names())}"
    )


def build_network(
    description: Mapping[str, Any], num_classes: int, source: str, *, download: bool = False
) -> nn.Module:
    """The network described in the configuration of a retraining, by architecture or by name.

    ``download`` allows options for pretrained weights to download them.
    """
    if "name" in description:
        return network_by_name(str(description["name"]), num_classes, description.get("options"), download=download)
    return architecture_from(description.get("architecture", {}), source).build(num_classes)


def inherited_network(architecture: Architecture, search_run: Path) -> nn.Module:
    """The network of ``architecture`` with the weights that a search has trained.

    Raises :class:`UserError` for a network of another space, and for a run folder without weights.
    """
    run, deriver = deriver_of_run(search_run)
    table = LatencyTable.load(search_run / TABLE) if (search_run / TABLE).exists() else None
    try:
        return deriver.inherit(searched_problem(run, deriver, table), architecture)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{search_run}: its weights do not fit the network: {error}") from None


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
    network = build_network(description, len(names), source)
    load_into(network, run.load_weights("best"), path)
    return LoadedNetwork(
        name=path.name,
        network=network.eval(),
        num_classes=len(names),
        input_size=stored.input_size,
        labels=labels,
        augmentation=parse_config(RetrainConfig, stored.retrain, source).augmentation,
        run=run,
    )
