"""The four jobs as functions, for the commands and for the demo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnas.cli.branches import TABLE, latency_goal, save_selection
from dnas.cli.common import NetworkAtHand, build_network, open_splits, require_classes
from dnas.config import to_mapping
from dnas.data import DataConfig
from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.latency import LatencyTable
from dnas.progress import Progress
from dnas.runs import RunFolder
from dnas.search import SearchResult, search
from dnas.training import RetrainConfig, RetrainResult, retrain
from search_spaces import FasterSegSpace, SearchSpace


def run_search(
    space: SearchSpace,
    data: DataConfig,
    table: LatencyTable | None,
    out: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
    allow_mismatch: bool = False,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> SearchResult:
    """Search ``space`` on ``data`` under the latencies of ``table``, in the run folder ``out``, which keeps the table.

    At the end the run folder gets the scores of all combinations of branches (``selection.json``). Everything that
    could fail later is checked first: the table's size, device and entries, the latency target, the number of classes.
    A space that can do without prices takes None.
    """
    chosen = resolve_device(device)
    _check_prices(space, table, allow_mismatch)
    goal = latency_goal(space, table) if isinstance(space, FasterSegSpace) and table is not None else None
    splits = open_splits(data)
    require_classes(splits[0].labels.num_classes, space.num_classes, splits[0].name, f"target of {space.name}")
    problem = space.problem(table, seed)
    configuration = {"preset": space.name, "space": space.configuration(), "data": to_mapping(data)}
    with RunFolder.create(out, "search", configuration, seed, resume, device=chosen, tensorboard=tensorboard) as run:
        if run.is_owner and table is not None:
            table.save(out / TABLE)
        result = search(problem, splits, run, space.search, device=chosen, progress=progress, goal=goal)
        if run.is_owner and goal is not None:
            save_selection(out)
        return result


def _check_prices(space: SearchSpace, table: LatencyTable | None, allow_mismatch: bool) -> None:
    """Raise :class:`UserError` unless ``table`` holds what ``space`` needs."""
    if table is None:
        if space.requires_table:
            raise UserError(
                f"{space.name}: its search is priced: give --table, a file of dnas latency build {space.name}"
            )
        return
    # Compared with the device of the table's kind, or the CPU where this machine has none of that kind.
    kind = table.provenance.device.type
    here = "cpu" if kind == "cuda" and not torch.cuda.is_available() else kind
    table.check_usable(input_size=space.input_size, device=here, allow_mismatch=allow_mismatch)
    missing = table.missing([item.spec for item in space.inventory()])
    if missing:
        table.lookup(missing[0])  # raises, naming the entry and the command that measures it


def run_retraining(
    network: Mapping[str, Any],
    data: DataConfig,
    out: Path,
    config: RetrainConfig,
    *,
    source: str,
    num_classes: int | None = None,
    transfer: bool = False,
    teacher: NetworkAtHand | None = None,
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> RetrainResult:
    """Train a network from scratch; ``network`` is {"architecture": {...}} or {"name": ...}, as the run keeps it.

    ``num_classes`` is what it was searched for: data with another number is refused unless ``transfer``.
    """
    from dnas.data.seeding import mix_seed
    from dnas.runs import seed_everything

    chosen = resolve_device(device)
    splits = open_splits(data)
    labels = splits[0].labels
    if num_classes is not None and num_classes != labels.num_classes and not transfer:
        raise UserError(
            f"{splits[0].name} has {labels.num_classes} classes, {source} was searched for {num_classes}: "
            "use the data it is for, or say --transfer"
        )
    if teacher is not None:
        require_classes(labels.num_classes, teacher.num_classes, splits[0].name, f"the teacher {teacher.name}")
    configuration = {
        "network": dict(network),
        "data": to_mapping(data),
        "retrain": to_mapping(config),
        "teacher": None if teacher is None or teacher.run is None else str(teacher.run.path.resolve()),
        "classes": list(labels.names),
        "colours": [list(colour) for colour in labels.colours],
        "input_size": list(splits[1].image_size),
    }
    seed_everything(mix_seed("network", seed))
    built: nn.Module = build_network(network, labels.num_classes, source)
    frozen = None if teacher is None else teacher.network
    with RunFolder.create(out, "retrain", configuration, seed, resume, device=chosen, tensorboard=tensorboard) as run:
        return retrain(built, splits, run, config, teacher=frozen, device=chosen, progress=progress)
