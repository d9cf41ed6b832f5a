"""The way from images to an exported network with defaults for the data, the device and the time there is."""

from __future__ import annotations

import math
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from derive import deriver_of
from dnas.data import DataConfig
from dnas.data.config import BUILT_IN
from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.files import dump_yaml, read_json, user_cache, write_json, write_text
from dnas.input_channels import RGB
from dnas.latency import LatencyTable
from dnas.search import OneShotConfig, SearchConfig
from dnas.search.calibration import CALIBRATION_BATCHES
from dnas.workflows.networks import open_splits
from dnas.workflows.pace import measure_costs
from dnas.workflows.schedule import (
    RETRAIN_VALIDATIONS,
    SEARCH_VALIDATIONS,
    Schedule,
    Work,
    schedule,
    validate_every,
)
from search_spaces import SearchSpace, load_space

SMALL_SPACE, LARGE_SPACE = "fasterseg_camvid_small", "fasterseg"
"""The presets that a search on a CPU and one on a GPU begin with."""

_MOST_PIXELS = {"cpu": 240 * 320, "cuda": 1024 * 2048}
_STEP = 32
_CACHE_BYTES = 2 << 30
_ON_DISK = (
    "Decoded images are kept on the disk, 4 bytes a pixel, in cache_dir or dnas/images of the user's caches. They "
    "may be deleted afterwards; --data-set cache=false does without."
)


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
    schedule: Schedule

    def commands(self, folder: Path) -> list[list[str]]:
        """The commands of the whole way, with their results in ``folder``; ``folder/space.yaml`` is the space."""
        request = self.request
        space, table = str(folder / "space.yaml"), str(folder / "table.json")
        data = ["--data", request.data, *(word for text in self.data_settings for word in ("--data-set", text))]
        search, seed = str(folder / "search"), ["--seed", str(request.seed)]
        kind = request.device.partition(":")[0]
        backend = request.backend or _default_backend(kind)
        budget = f"{max(5, round(self.schedule.table_s))}s"
        measured = ["--device", request.device, "--backend", backend, "--budget", budget]
        networks = []
        for name, which in self.networks().items():
            architecture = str(folder / f"{name}.yaml")
            teacher = ["--teacher", str(folder / "teacher")] if name == "student" and len(self.networks()) > 1 else []
            networks += [
                ["derive", search, "--out", architecture, "--which", which],
                ["retrain", architecture, *data, "--out", str(folder / name), "--recipe", space, *teacher, *seed],
            ]
        return [
            ["data", "check", *data[1:], "--images", "500", "--report", str(folder / "data.html")],
            ["latency", "build", space, "--out", table, *measured],
            ["search", space, *data, "--table", table, "--out", search, *seed],
            *networks,
            ["export", str(folder / "student"), "--format", "onnx", "--out", str(folder / "student.onnx")],
            [
                *("report", "--out", str(folder / "report.html"), "--search", search, "--networks", "8"),
                *(word for name in reversed(self.networks()) for word in (f"--{name}", str(folder / name))),
            ],
        ]

    def networks(self) -> dict[str, str]:
        """The networks that are derived, by the name of their files: a teacher first if the search has one."""
        names = deriver_of(self.space).architectures
        return {name: name for name in ("teacher", "student")} if _has_teacher(self.space) else {"student": names[0]}

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
    """A plan by the size of the data, the device and the time; one of everything is run for a moment to time it.

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
    work = _work(begun, len(train), len(validation))
    costs = measure_costs(
        begun,
        train,
        crop=crop,
        batch=work.batch,
        trained_on=trained_on,
        latencies_of=request.device,
        backend=request.backend or _default_backend(request.device.partition(":")[0]),
    )
    length = schedule(request.time_s, work, costs)
    settings = _lengths(begun, length, work, crop, size)
    space = load_space(base, [*_task_settings(size, train.labels.num_classes, request), *settings])
    given = {text.partition("=")[0]: text for text in request.data_settings}
    cache = "disk" if "cache_dir" in given else choose_cache(request.config, len(train), len(validation), size)
    decided = {"cache": f"cache={cache}", **given, "size": f"size=[{size[0]},{size[1]}]"}
    data_settings = tuple(decided.values())
    reasons = (
        f"{len(train)} training and {len(validation)} validation images of {train.labels.num_classes} classes; "
        f"images of {train.image_size[0]}x{train.image_size[1]} are read at {size[0]}x{size[1]} (height x width).",
        f"Begun with the preset {base}; trained on {trained_on}, {1000 * costs.image:.1f} ms an image and "
        f"{costs.step:.2f} s a step of the search; latencies of {request.device}.",
        _estimate(length, request.time_s),
        *([_ON_DISK] if "cache=disk" in data_settings else []),
    )
    return Plan(request, space, data_settings, reasons, length)


def choose_cache(
    config: DataConfig, training: int, validation: int, size: tuple[int, int]
) -> Literal["true", "disk", "false"]:
    """Where decoded images are kept: in memory if they are few, else on the disk if it has twice the room they need."""
    image = 4 * math.prod(size)
    if training * image < _CACHE_BYTES:
        return "true"
    place = user_cache()
    while not place.exists():
        place = place.parent
    room = shutil.disk_usage(place).free > 2 * (training + validation) * image
    return "disk" if room and config.dataset not in BUILT_IN else "false"


def working_size(native: tuple[int, int], most_pixels: int) -> tuple[int, int]:
    """(height, width) in multiples of 32, with the shape of ``native`` and at most about ``most_pixels``."""
    factor = min(1.0, math.sqrt(most_pixels / math.prod(native)))
    height, width = (max(2 * _STEP, _STEP * round(side * factor / _STEP)) for side in native)
    return height, width


def fit_budget(space: Path, table: Path) -> str | None:
    """Remove the latency target of the file ``space`` if every network of the space meets it by ``table``.

    Returns what was done as a line for the user; None if nothing was to be done. The rest of the file stays as it is.
    Raises :class:`UserError` for a target below the latency of the fastest network.
    """
    found = load_space(str(space))
    target = found.settings.latency_target_ms
    if target is None:
        return None
    bounds = deriver_of(found).latency_bounds_for(LatencyTable.load(table), target).values()
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
        f"budget of {target:g} ms: the slowest network of the space takes {slowest:.3f} ms, so every network meets "
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
    if request.config.channels != RGB:
        found.append(f"task.channels={request.config.channels}")
    if request.budget_ms is not None:
        found.append(f"latency_target_ms={request.budget_ms}")
    return found


def _work(space: SearchSpace[Any], train: int, validation: int) -> Work:
    """What there is to do; raises :class:`UserError` for a space whose search has other phases."""
    search = space.search
    if not isinstance(search, SearchConfig | OneShotConfig):
        raise UserError(
            f"{space.name}: the whole way needs a search that holds training images out, as that of {SMALL_SPACE} does"
        )
    searched, held_out = map(len, search.parts(train, 0))
    batch, scored = min(search.batch_size, searched), min(50, held_out)
    judged = int(getattr(search, "judged_networks", 0))
    return Work(
        entries=len(space.inventory()),
        train=train,
        validation=validation,
        batch=batch,
        searched=searched,
        scored=scored,
        most_search=search.epochs,
        most_retrain=max(space.retrain.epochs, 100),
        most_judged=judged,
        judging=min(CALIBRATION_BATCHES, searched // batch) * batch + scored if judged else 0,
        networks=2 if _has_teacher(space) else 1,
    )


def _has_teacher(space: SearchSpace[Any]) -> bool:
    """Whether the search trains a teacher of its own, which is distilled then."""
    return isinstance(space.search, SearchConfig) and "teacher" in deriver_of(space).architectures


def _search_crop(size: tuple[int, int]) -> tuple[int, int]:
    height, width = (max(2 * _STEP, _STEP * round(side / 2 / _STEP)) for side in size)
    return min(height, size[0]), min(width, size[1])


def _lengths(
    space: SearchSpace[Any], length: Schedule, work: Work, crop: tuple[int, int], size: tuple[int, int]
) -> list[str]:
    """Settings of the search and the retraining."""
    epochs, trained = length.search_epochs, length.retrain_epochs
    batch = min(space.retrain.batch_size, work.train)
    if isinstance(space.search, SearchConfig):
        pretrain = max(1, round(0.4 * epochs))
        phases = [f"search.pretrain_epochs={pretrain}", f"search.search_epochs={max(1, epochs - pretrain)}"]
    else:
        phases = [f"search.epochs={epochs}", f"search.warm_up_steps={_warm_up(epochs, work.searched // work.batch)}"]
    if length.judged:
        phases += [f"search.judged_networks={length.judged}", f"search.judge_images={work.scored}"]
    return [
        *phases,
        f"search.batch_size={work.batch}",
        f"search.validation_images={work.scored}",
        f"search.validate_every={validate_every(epochs, SEARCH_VALIDATIONS)}",
        f"search.augmentation.crop=[{crop[0]}, {crop[1]}]",
        f"retrain.epochs={trained}",
        f"retrain.batch_size={batch}",
        f"retrain.warm_up_steps={_warm_up(trained, work.train // batch)}",
        f"retrain.validate_every={validate_every(trained, RETRAIN_VALIDATIONS)}",
        f"retrain.augmentation.crop=[{size[0]}, {size[1]}]",
    ]


def _warm_up(epochs: int, steps: int) -> int:
    """A tenth of the steps, but not more than 50."""
    return min(50, epochs * steps // 10)


def _estimate(length: Schedule, time_s: float) -> str:
    """The estimated times as a line."""
    parts = ", ".join(f"{name} {_minutes(seconds)}" for name, seconds in length.seconds.items())
    text = f"Estimated from a moment of each: {parts}; {_minutes(length.total_s)} in all"
    if length.total_s > time_s:
        return f"{text}, more than the {_minutes(time_s)} given: this is the shortest way with these images."
    return f"{text} of {_minutes(time_s)}."


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _default_backend(kind: str) -> str:
    return {"cpu": "onnxruntime", "cuda": "cudagraph"}.get(kind, "eager")
