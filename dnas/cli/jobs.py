"""The four jobs as functions, for the commands and for the demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from derive import Architecture, Choices, decode
from dnas.cli.common import NetworkAtHand, build_network, open_splits, require_classes
from dnas.config import to_mapping
from dnas.data import DataConfig
from dnas.errors import UserError
from dnas.latency import LatencyTable
from dnas.runs import RunFolder
from dnas.search import SearchResult, search
from dnas.training import Progress, RetrainConfig, RetrainResult, resolve_device, retrain
from search_spaces import FasterSegSpace, SearchSpace, space_from

_TABLE = "table.json"


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

    Everything that could fail later is checked first: the table's size, device and entries, the number of classes. A
    space that can do without prices takes None.
    """
    chosen = resolve_device(device)
    _check_prices(space, table, allow_mismatch)
    splits = open_splits(data)
    require_classes(splits[0].labels.num_classes, space.num_classes, splits[0].name, f"target of {space.name}")
    problem = space.problem(table, seed)
    configuration = {"preset": space.name, "space": space.configuration(), "data": to_mapping(data)}
    with RunFolder.create(out, "search", configuration, seed, resume, device=chosen, tensorboard=tensorboard) as run:
        if run.is_owner and table is not None:
            table.save(out / _TABLE)
        return search(problem, splits, run, space.search, device=chosen, progress=progress)


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


@dataclass(frozen=True)
class BranchScore:
    """One combination of branches: mIoU in the supernet, latency of the derived network, and Appendix B's target."""

    branches: tuple[int, ...]
    miou: float | None
    latency_ms: float | None
    score: float | None


@dataclass(frozen=True)
class Derivation:
    """A derived architecture with its predicted latency and, where branches were chosen, the scores of all."""

    architecture: Architecture
    rule: str
    latency_ms: float | None
    scores: tuple[BranchScore, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """The content of ``dnas derive --json``."""
        return {
            "rule": self.rule,
            "branches": self.architecture.summary(),
            "latency_ms": self.latency_ms,
            "scores": [score.__dict__ for score in self.scores],
        }


def derive_from_run(
    path: Path, which: str, branches: tuple[int, ...] | None = None, table: LatencyTable | None = None
) -> Derivation:
    """The discrete architecture of a finished search.

    Without ``branches`` the combination is chosen by ACC * (LAT / T) ** w (FasterSeg Appendix B) from the mIoU that the
    combinations have in the supernet and the latencies of their derived networks. ``table`` defaults to the run's own.
    """
    run = RunFolder.open(path, "search")
    space = space_from(run.configuration.get("space", {}), str(path / "configuration.yaml"))
    if not isinstance(space, FasterSegSpace):
        raise UserError(f"{path}: a search of {space.name} cannot be derived")
    logits = _logits(run, which)
    plan = space.plan()
    choices = Choices(plan.grid, plan.operators, plan.ratios, space.end_ratios[which])
    if table is None and (path / _TABLE).exists():
        table = LatencyTable.load(path / _TABLE)
    if branches is not None and branches not in plan.combinations():
        known = ", ".join(",".join(map(str, combination)) for combination in plan.combinations())
        raise UserError(f"branches {','.join(map(str, branches))}: the supernet has heads for {known}")
    provenance = {
        "run": path.resolve(),
        "space": run.configuration.get("preset", ""),
        "which": which,
        "rule": "paper",
        "seed": run.seed,
        "epochs": len(run.records("epoch")),
    }
    wanted = plan.combinations() if branches is None else (branches,)
    derived = {c: decode(logits, choices, c, provenance) for c in wanted}
    scores = tuple(_score(run, space, which, c, a, table) for c, a in derived.items())
    if all(score.score is not None for score in scores):
        best = max(scores, key=lambda score: score.score or 0.0)
    else:
        best = scores[-1]
    architecture = _with_target(derived[best.branches], space)
    return Derivation(architecture, "paper", best.latency_ms, scores)


def _logits(run: RunFolder, which: str) -> dict[str, Any]:
    logits = {
        name.removeprefix(f"{which}."): table
        for name, table in run.load_weights("architecture").items()
        if name.startswith(f"{which}.")
    }
    if not logits:
        raise UserError(f"{run.path}: holds no architecture named {which}, expected student or teacher")
    return logits


def _score(
    run: RunFolder,
    space: FasterSegSpace,
    which: str,
    branches: tuple[int, ...],
    architecture: Architecture,
    table: LatencyTable | None,
) -> BranchScore:
    validated = [record["miou_outputs"] for record in run.records("epoch") if record.get("miou_outputs")]
    miou = validated[-1].get(which, {}).get("_".join(map(str, branches))) if validated else None
    latency = None
    if table is not None:
        latency = sum(map(table.lookup, architecture.signatures(space.num_classes, space.input_size)))
    target = space.settings.target
    score = None
    if miou is not None and latency is not None:
        score = miou * (latency / target.select_ms) ** target.select_exponent
    return BranchScore(branches, miou, latency, score)


def _with_target(architecture: Architecture, space: SearchSpace) -> Architecture:
    from dataclasses import replace

    return replace(architecture, num_classes=space.num_classes, input_size=space.input_size)


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
