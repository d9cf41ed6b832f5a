"""Searching a space in a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from derive import TABLE, Judge, deriver_of
from dnas.config import parse_config, to_mapping
from dnas.data import DataConfig
from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.input_channels import RGB, with_input_channels
from dnas.latency import LatencyTable
from dnas.progress import Progress
from dnas.runs import RunFolder
from dnas.search import SearchResult, search
from dnas.training import deterministic_algorithms, fix_workspace
from dnas.workflows.data_check import SAMPLED_IMAGES, check_sample
from dnas.workflows.measuring import device_to_compare
from dnas.workflows.networks import PLACES, deciding, open_splits, recorded_classes, require_classes
from search_spaces import SearchSpace, space_from


def run_search(
    space: SearchSpace[Any],
    data: DataConfig,
    table: LatencyTable | None,
    out: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
    deterministic: bool = False,
    allow_mismatch: bool = False,
    tensorboard: bool = False,
    other_environment: bool = False,
    progress: Progress | None = None,
    check: int | None = SAMPLED_IMAGES,
) -> SearchResult:
    """Search ``space`` on ``data`` with the latencies of ``table``; the run folder ``out`` gets a copy of the table.

    Everything that could fail later is checked first: input size, device and entries of the table, the latency target,
    and the number of classes. ``table`` may be None if the space does not require one.
    ``check``: number of images of each split that are read before; None for all.
    ``deterministic``: see :func:`dnas.training.deterministic_algorithms`; a run keeps it when it is resumed.
    """
    fix_workspace(deterministic)  # before anything initialises CUDA
    chosen = resolve_device(device)
    space = _for_data(space, data)
    _check_table(space, table, allow_mismatch)
    deriver = deriver_of(space)
    target = space.latency_target(table, deriver)
    splits = open_splits(data, classes=recorded_classes(out) if resume else None, wanted_by=str(out))
    require_classes(splits[0].labels.num_classes, space.num_classes, splits[0].name, f"task of {space.name}")
    check_sample(splits, data, check, progress)
    problem = space.problem(table, seed)
    with_input_channels(problem.weights, data.channels)
    configuration = {"preset": space.name, "space": space.configuration(), "data": to_mapping(data)}
    configuration |= {"deterministic": deterministic} | deciding(splits)
    with (
        RunFolder.create(
            out,
            "search",
            configuration,
            seed,
            resume,
            device=chosen,
            tensorboard=tensorboard,
            other_environment=other_environment,
            upgrade=partial(_upgrade, configuration),
            free=(*PLACES, "space.search.workers", "space.retrain"),
        ) as run,
        deterministic_algorithms(deterministic),
    ):
        if run.is_owner and table is not None:
            table.save(out / TABLE)
        result = search(problem, splits, run, space.search, device=chosen, progress=progress, latency_target=target)
        judge = Judge(run, deriver, lambda: splits[0], lambda: problem, device=chosen, progress=progress)
        deriver.finish_search(run, judge)
        return result


def _for_data(space: SearchSpace[Any], data: DataConfig) -> SearchSpace[Any]:
    """``space`` with the channels of ``data`` in its task, and their mean and deviation in its trainings."""
    if data.channels == space.channels and (data.mean is None or data.std is None):
        return space
    values = space.configuration()
    values["task"]["channels"] = data.channels
    if data.mean is None or data.std is None:
        return space_from(values, space.name)
    for part in ("search", "retrain"):
        values[part]["augmentation"] |= {"mean": list(data.mean), "std": list(data.std)}
    return space_from(values, space.name)


def _check_table(space: SearchSpace[Any], table: LatencyTable | None, allow_mismatch: bool) -> None:
    """Raise :class:`UserError` unless ``table`` has all entries that ``space`` needs."""
    if table is None:
        if space.requires_table:
            raise UserError(
                f"{space.name}: the search needs a latency table: give --table, from dnas latency build {space.name}"
            )
        return
    table.check_usable(input_size=space.input_size, device=device_to_compare(table), allow_mismatch=allow_mismatch)
    missing = table.missing([item.spec for item in space.inventory()])
    if missing and space.channels != RGB:
        raise UserError(
            f"{table.source or 'the latency table'}: holds no {missing[0].key!r}, which images of {space.channels} "
            f"channels need; measure it with `dnas latency build {space.name} --set task.channels={space.channels}`"
        )
    if missing:
        table.lookup(missing[0])  # raises, naming the entry and the command that measures it


def _upgrade(wanted: Mapping[str, Any], configuration: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a search as an earlier version wrote it, in today's form and with today's defaults.

    What it did not record is taken from ``wanted``, the configuration of this call.
    """
    space, data = configuration.get("space", {}), configuration.get("data", {})
    return {
        "deterministic": False,
        **{key: wanted[key] for key in ("classes", "images", "processes")},
        **configuration,
        "space": space_from(space, "configuration.yaml").configuration(),
        "data": to_mapping(parse_config(DataConfig, data, "configuration.yaml: data")),
    }
