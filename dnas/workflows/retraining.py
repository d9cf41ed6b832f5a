"""Training a network in a run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from derive import architecture_from
from dnas.config import parse_config, to_mapping
from dnas.data import DataConfig, SegmentationDataset, class_order, measured_statistics
from dnas.data.seeding import mix_seed
from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.files import write_json
from dnas.progress import NoProgress, Progress
from dnas.runs import RunFolder, seed_everything
from dnas.training import (
    RetrainConfig,
    RetrainResult,
    deterministic_algorithms,
    fix_workspace,
    is_channels_last,
    retrain,
)
from dnas.workflows.data_check import SAMPLED_IMAGES, check_sample
from dnas.workflows.initial import LIBRARIES, initialise
from dnas.workflows.networks import (
    PLACES,
    LoadedNetwork,
    ReorderedClasses,
    add_auxiliary_heads,
    build_network,
    deciding,
    inherited_network,
    open_splits,
    recorded_classes,
    require_classes,
)


def run_retraining(
    network: Mapping[str, Any],
    data: DataConfig,
    out: Path,
    config: RetrainConfig,
    *,
    source: str,
    num_classes: int | None = None,
    transfer: bool = False,
    teacher: LoadedNetwork | None = None,
    inherit: Path | None = None,
    download: bool = False,
    init: str | None = None,
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
    deterministic: bool = False,
    tensorboard: bool = False,
    other_environment: bool = False,
    progress: Progress | None = None,
    check: int | None = SAMPLED_IMAGES,
) -> RetrainResult:
    """Train a network; ``network`` is {"architecture": {...}} or {"name": ..., "options": {...}}, as stored in the run.

    ``inherit``: the run folder of a search whose weights the training begins with. ``init``: other weights to begin
    with, see :func:`dnas.workflows.initial.initialise`; what was taken is in ``initial_weights.json`` of the run.
    ``download`` allows options of the network to download pretrained weights. ``num_classes`` is the number of
    classes of the search; other data raises :class:`UserError` unless ``transfer``.
    ``check``: number of images of each split that are read before; None for all.
    ``deterministic``: see :func:`dnas.training.deterministic_algorithms`; a run keeps it when it is resumed.
    """
    fix_workspace(deterministic)  # before anything initialises CUDA
    chosen = resolve_device(device)
    config = dataclasses.replace(config, channels_last=is_channels_last(config, chosen))
    config = dataclasses.replace(config, augmentation=measured_statistics(config.augmentation, data))
    splits = _splits(data, config, out if resume else None, inherit, init)
    labels = splits[0].labels
    if num_classes is not None and num_classes != labels.num_classes and not transfer:
        raise UserError(
            f"{splits[0].name} has {labels.num_classes} classes, {source} was searched for {num_classes}: "
            "use data with the same classes, or give --transfer"
        )
    if teacher is not None and config.distillation_weight == 0:
        raise UserError(
            f"teacher {teacher.name}: distillation_weight is 0, so it would teach nothing; give "
            "--set distillation_weight=1 or no --teacher"
        )
    frozen = None if teacher is None else _frozen(teacher, splits[0])
    description = {**network, **({"auxiliary": True} if config.auxiliary_weights else {})}
    check_sample(splits, data, check, progress)
    configuration = {
        "network": description,
        "data": to_mapping(data),
        "retrain": to_mapping(config),
        "teacher": None if teacher is None or teacher.run is None else str(teacher.run.path.resolve()),
        "inherit": None if inherit is None else str(inherit.resolve()),
        "init": init if init is None or init in LIBRARIES else str(Path(init).resolve()),
        "deterministic": deterministic,
        **deciding(splits),
        "colours": [list(colour) for colour in labels.colours],
        "input_size": list(splits[1].image_size),
    }
    if init is not None and inherit is not None:
        raise UserError(f"--init {init}: the network inherits the weights of its search already; give --scratch too")
    seed_everything(mix_seed("network", seed))
    built: nn.Module = build_network(description, labels.num_classes, source, data.channels, download=download)
    if inherit is not None:
        if "architecture" not in network or transfer:
            raise UserError(f"{source}: only derived networks with the classes of the search can inherit weights")
        built = inherited_network(architecture_from(network["architecture"], source), inherit)
        if config.auxiliary_weights:
            add_auxiliary_heads(built, source)
    taken = None
    if init is not None and not (resume and (out / "state.pt").exists()):
        # Before the folder is made: a mistake here leaves none behind.
        taken = initialise(built, init, description, labels.names)
    with (
        RunFolder.create(
            out,
            "retrain",
            configuration,
            seed,
            resume,
            device=chosen,
            tensorboard=tensorboard,
            other_environment=other_environment,
            upgrade=partial(_upgrade, configuration),
            free=(*PLACES, "retrain.workers", "colours"),
        ) as run,
        deterministic_algorithms(deterministic),
    ):
        if taken is not None:
            if run.is_owner:
                write_json(run.path / "initial_weights.json", taken.to_mapping())
            for line in taken.lines():
                (progress or NoProgress()).message(line)
        return retrain(built, splits, run, config, teacher=frozen, device=chosen, progress=progress)


def _splits(
    data: DataConfig, config: RetrainConfig, resumed: Path | None, inherit: Path | None, init: str | None
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The images, with the classes in the order of the run that is resumed or inherited from."""
    for path in (resumed, inherit):
        names = None if path is None else recorded_classes(path)
        if names is not None:
            return open_splits(data, config.trained_on, config.validated_on, names, str(path))
    splits = open_splits(data, config.trained_on, config.validated_on)
    names = recorded_classes(Path(init)) if init is not None and init not in LIBRARIES else None
    own = splits[0].labels.names
    if names is None or len(names) != len(own):  # the last layer of a run with another number of classes is left out
        return splits
    # Otherwise it is taken, so that its classes have to be those of the data.
    return open_splits(data, config.trained_on, config.validated_on, names, f"--init {init}")


def _frozen(teacher: LoadedNetwork, data: SegmentationDataset) -> nn.Module:
    """The teacher with its logits in the order of the classes of ``data``."""
    if teacher.labels is None:
        require_classes(data.labels.num_classes, teacher.num_classes, data.name, f"the teacher {teacher.name}")
        return teacher.network
    own, wanted = teacher.labels.names, data.labels.names
    class_order(wanted, own, data.name, f"the teacher {teacher.name}")  # in these words if they are not the same
    order = class_order(own, wanted, teacher.name, data.name)
    return teacher.network if own == wanted else ReorderedClasses(teacher.network, order)


def _upgrade(wanted: Mapping[str, Any], configuration: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a retraining as an earlier version wrote it, with today's defaults for what is new.

    What it did not record is taken from ``wanted``, the configuration of this call.
    """
    data, recipe = configuration.get("data", {}), configuration.get("retrain", {})
    return {
        "inherit": None,
        "init": None,
        "deterministic": False,
        **{key: wanted[key] for key in ("images", "processes")},
        **configuration,
        "data": to_mapping(parse_config(DataConfig, data, "configuration.yaml: data")),
        "retrain": to_mapping(parse_config(RetrainConfig, recipe, "configuration.yaml: retrain")),
    }
