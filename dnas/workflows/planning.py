"""The way from images to an exported network with defaults for the data, the device and the time there is."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from derive import deriver_of
from dnas.data import DataConfig
from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.files import dump_yaml, read_json, write_json, write_text
from dnas.latency import LatencyTable
from dnas.workflows.networks import open_splits
from search_spaces import SearchSpace, load_space

SMALL_SPACE, LARGE_SPACE = "fasterseg_camvid_small", "fasterseg"
"""The presets that a search on a CPU and one on a GPU begin with."""

_MOST_PIXELS = {"cpu": 240 * 320, "cuda": 1024 * 2048}
_SHARES = {"table": 0.1, "search": 0.35, "teacher": 0.2, "student": 0.25}
"""Shares of the time; the rest is for the check of the data, the derivation, the export and the report."""
_SUPERNET_COST = 8.0
"""A step of the search against one of a derived network: about four passes of the weights, twice as long each."""
_STEP = 32
_CACHE_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What the user wants.

    data, data_settings: as on the command line. config: the same, parsed.
    device, backend: those that latencies are measured on.
    budget_ms: latency of the network; None for the compromise of the preset. time_s: time for everything.
    space: preset to begin with; None chooses by the device that trains.
    """

    data: str
    config: DataConfig
    data_settings: tuple[str, ...] = ()
    device: str
    backend: str | None = None
    budget_ms: float | None = None
    time_s: float = 7200.0
    space: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """A search space for the data, and why its values were chosen."""

    request: PlanRequest
    space: SearchSpace[Any]
    data_settings: tuple[str, ...]
    reasons: tuple[str, ...]

    def commands(self, folder: Path) -> list[list[str]]:
        """The commands of the whole way, with their results in ``folder``; ``folder/space.yaml`` is the space."""
        request = self.request
        space, table = str(folder / "space.yaml"), str(folder / "table.json")
        data = ["--data", request.data, *(word for text in self.data_settings for word in ("--data-set", text))]
        search, seed = str(folder / "search"), ["--seed", str(request.seed)]
        kind = request.device.partition(":")[0]
        backend = request.backend or _default_backend(kind)
        budget = f"{max(5, round(_SHARES['table'] * request.time_s))}s"
        measured = ["--device", request.device, "--backend", backend, "--budget", budget]
        networks = []
        for which in ("teacher", "student"):
            architecture = str(folder / f"{which}.yaml")
            teacher = ["--teacher", str(folder / "teacher")] if which == "student" else []
            networks += [
                ["derive", search, "--out", architecture, "--which", which],
                ["retrain", architecture, *data, "--out", str(folder / which), "--recipe", space, *teacher, *seed],
            ]
        return [
            ["data", "check", *data[1:], "--images", "500", "--report", str(folder / "data.html")],
            ["latency", "build", space, "--out", table, *measured],
            ["search", space, *data, "--table", table, "--out", search, *seed],
            *networks,
            ["export", str(folder / "student"), "--format", "onnx", "--out", str(folder / "student.onnx")],
            [
                *("report", "--out", str(folder / "report.html"), "--search", search, "--networks", "8"),
                *("--student", str(folder / "student"), "--teacher", str(folder / "teacher")),
            ],
        ]

    def text(self, folder: Path) -> str:
        """The space as YAML with comments: the reasons, and the commands of the whole way."""
        reasons = "".join(f"# {reason}\n" for reason in self.reasons)
        commands = "".join(f"#   {shlex.join(['dnas', *command])}\n" for command in self.commands(folder))
        sections = []
        for key, value in self.space.configuration().items():
            comment = _COMMENTS.get(key)
            sections.append((f"\n# {comment}\n" if comment else "") + dump_yaml({key: value}))
        return f"# A search space for {self.request.data}.\n{reasons}# The whole way:\n{commands}{''.join(sections)}"


_COMMENTS = {
    "task": "Height and width at which latencies are measured and the network is trained, and the number of classes.",
    "latency_target_ms": "The latency that the student is led to, in ms; null: the search weighs latency and loss.",
    "branch_selection": "Which branches the derived network has: accuracy against latency in ms.",
    "network": "Layers, operators and widths that the search chooses from.",
    "search": "Training of the supernet: longer is better, more images are better than more epochs.",
    "retrain": "Training of the derived networks.",
}


def make_plan(request: PlanRequest) -> Plan:
    """A plan by the size of the data, the device and the time; a derived network is trained for a moment to time it.

    Raises :class:`UserError` for data that cannot be opened or are too few.
    """
    train, validation = open_splits(request.config)
    trained_on = resolve_device("auto")
    size = working_size(train.image_size, _MOST_PIXELS[trained_on.type])
    if len(train) < 4:
        raise UserError(f"{request.data}: {len(train)} training images, expected at least 4 to search and train on")
    base = request.space or (SMALL_SPACE if trained_on.type == "cpu" else LARGE_SPACE)
    begun = load_space(base, _task_settings(size, train.labels.num_classes, request))
    crop = _search_crop(size)
    pace = seconds_per_image(begun, size, trained_on)
    settings = _lengths(request, begun, len(train), pace, crop, size)
    space = load_space(base, [*_task_settings(size, train.labels.num_classes, request), *settings])
    cached = len(train) * 4 * math.prod(size) < _CACHE_BYTES
    given = {text.partition("=")[0]: text for text in request.data_settings}
    decided = {"cache": f"cache={'true' if cached else 'false'}", **given, "size": f"size=[{size[0]},{size[1]}]"}
    data_settings = tuple(decided.values())
    reasons = (
        f"{len(train)} training and {len(validation)} validation images of {train.labels.num_classes} classes; "
        f"images of {train.image_size[0]}x{train.image_size[1]} are read at {size[0]}x{size[1]} (height x width).",
        f"Begun with the preset {base}; trained on {trained_on}, {1000 * pace:.1f} ms an image; latencies of "
        f"{request.device}.",
        f"The epochs are meant for {request.time_s / 3600:.1f} h in all.",
    )
    return Plan(request, space, data_settings, reasons)


def working_size(native: tuple[int, int], most_pixels: int) -> tuple[int, int]:
    """(height, width) in multiples of 32, with the shape of ``native`` and at most about ``most_pixels``."""
    factor = min(1.0, math.sqrt(most_pixels / math.prod(native)))
    height, width = (max(2 * _STEP, _STEP * round(side * factor / _STEP)) for side in native)
    return height, width


def seconds_per_image(space: SearchSpace[Any], size: tuple[int, int], device: torch.device) -> float:
    """Time of a training step of a random network of ``space``, for one image of ``size``: the best of two."""
    architecture = deriver_of(space).draw(1, 0)[0]
    network = architecture.build(space.num_classes).to(device).train()
    images = torch.zeros(2, 3, *size, device=device)
    best = math.inf
    for _ in range(2):
        started = time.perf_counter()
        outputs = network(images)
        logits = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        torch.autograd.backward(logits.float().square().mean())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best / len(images)


def fit_budget(space: Path, table: Path) -> str | None:
    """Remove the latency target of the file ``space`` if every network of the space meets it by ``table``.

    Returns what was done as a line for the user; None if nothing was to be done. The rest of the file stays as it is.
    Raises :class:`UserError` for a target below the latency of the fastest network.
    """
    found = load_space(str(space))
    target = found.settings.latency_target_ms
    if target is None:
        return None
    bounds = deriver_of(found).latency_bounds(LatencyTable.load(table)).values()
    fastest, slowest = min(low for low, _ in bounds), max(high for _, high in bounds)
    if target < fastest:
        raise UserError(
            f"budget of {target:g} ms: the fastest network of the space takes {fastest:.3f} ms at "
            f"{found.input_size[0]}x{found.input_size[1]} according to {table}; raise latency_target_ms in {space}, "
            "or begin again with a larger --budget-ms or a smaller size of the images (--data-set size=[HEIGHT,WIDTH])"
        )
    if target <= slowest:
        return None
    lines = space.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = ("latency_target_ms: null\n" if line.startswith("latency_target_ms:") else line for line in lines)
    write_text(space, "".join(kept))
    return (
        f"budget of {target:g} ms: the slowest network of the space takes {slowest:.3f} ms, so that every network meets "
        "it; the search goes on without a latency target"
    )


def save_progress(folder: Path, commands: list[list[str]], finished: int) -> None:
    """Write which of the commands are finished, for a resumption."""
    write_json(folder / "plan.json", {"commands": commands, "finished": finished})


def read_progress(folder: Path) -> tuple[list[list[str]], int]:
    """The commands and the number of finished ones that :func:`save_progress` wrote."""
    content = read_json(folder / "plan.json", "plan of dnas auto")
    try:
        return [list(map(str, command)) for command in content["commands"]], int(content["finished"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / 'plan.json'}: not a plan of dnas auto; start again in another folder") from None


def write_plan(plan: Plan, path: Path) -> None:
    """Write the space as a commented YAML file, and the data's folder of results beside it."""
    write_text(path, plan.text(path.parent))


def _task_settings(size: tuple[int, int], classes: int, request: PlanRequest) -> list[str]:
    found = [f"task.input_size=[{size[0]}, {size[1]}]", f"task.num_classes={classes}"]
    if request.budget_ms is not None:
        found.append(f"latency_target_ms={request.budget_ms}")
    return found


def _search_crop(size: tuple[int, int]) -> tuple[int, int]:
    height, width = (max(2 * _STEP, _STEP * round(side / 2 / _STEP)) for side in size)
    return min(height, size[0]), min(width, size[1])


def _lengths(
    request: PlanRequest,
    space: SearchSpace[Any],
    images: int,
    pace: float,
    crop: tuple[int, int],
    size: tuple[int, int],
) -> list[str]:
    """Settings of the search and the retraining: epochs for the time, and batches for the number of images."""
    configuration: Mapping[str, Any] = space.configuration()
    search, retrain = configuration["search"], configuration["retrain"]
    of_crop = pace * math.prod(crop) / math.prod(size)
    wanted = search["pretrain_epochs"] + search["search_epochs"]
    epochs = _epochs(_SHARES["search"] * request.time_s, images / 2 * _SUPERNET_COST * of_crop, wanted, at_least=3)
    pretrain = max(1, round(0.4 * epochs))
    half = images // 2
    share = min(_SHARES["teacher"], _SHARES["student"])
    trained = _epochs(share * request.time_s, images * pace, max(retrain["epochs"], 100), at_least=4)
    batch = min(retrain["batch_size"], images)
    workers = 0 if resolve_device("auto").type == "cpu" else min(8, os.cpu_count() or 1)
    return [
        f"search.pretrain_epochs={pretrain}",
        f"search.search_epochs={max(1, epochs - pretrain)}",
        f"search.batch_size={min(search['batch_size'], half)}",
        f"search.validation_images={min(50, half)}",
        f"search.validate_every={max(1, epochs // 8)}",
        f"search.augmentation.crop=[{crop[0]}, {crop[1]}]",
        f"search.workers={workers}",
        f"retrain.epochs={trained}",
        f"retrain.batch_size={batch}",
        f"retrain.warm_up_steps={min(45, trained * (images // batch) // 10)}",
        f"retrain.validate_every={max(1, trained // 10)}",
        f"retrain.augmentation.crop=[{size[0]}, {size[1]}]",
        f"retrain.workers={workers}",
    ]


def _epochs(seconds: float, seconds_per_epoch: float, most: int, *, at_least: int) -> int:
    return max(at_least, min(most, int(seconds / max(seconds_per_epoch, 1e-9))))


def _default_backend(kind: str) -> str:
    return {"cpu": "onnxruntime", "cuda": "cudagraph"}.get(kind, "eager")
