"""The stages of a search of dilation rates, from the predictions saved in its run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from derive.dilated.growth_picture import Growth, Stage
from derive.dilated.rate_records import epoch_records
from derive.dilated.rounding import by_block
from dnas.config import parse_config
from dnas.data import IGNORE_LABEL, DataConfig, SegmentationDataset, eval_transform, match_classes, open_dataset
from dnas.data.rectangles import top_quarter
from dnas.errors import UserError
from dnas.receptive_field import fields_around
from dnas.report import ClassLabels
from dnas.runs import RunFolder
from dnas.search.joint import predictions_name
from dnas.training import SegmentationMetrics
from search_spaces.regseg import RateSearch, RegSegSpace

MAX_STAGES = 5
_ROW = 8
"""The output whose sampling positions are drawn is at 1 / _ROW of the image height."""


@dataclass(frozen=True)
class Snapshot:
    """Predictions after ``epochs`` epochs (``step`` steps), by index of the validation image.

    ``miou`` is a fraction. ``top_right`` is the fraction of correct rectangle pixels in the top quarter, for the
    built-in rectangles only.
    """

    epochs: int
    step: int
    predictions: dict[int, Tensor]
    miou: float
    top_right: float | None

    def note(self) -> str:
        """The score in one line."""
        if self.top_right is None:
            return f"mIoU {100 * self.miou:.0f} %"
        return f"top {100 * self.top_right:.0f} % correct"


def snapshots(run: RunFolder, space: RegSegSpace) -> list[Snapshot]:
    """The saved predictions in the order of epochs; empty unless the search saved some (search.keep_predictions)."""
    epochs = len(run.records("epoch"))
    names = {number: predictions_name(number) for number in range(epochs + 1)}
    saved = {n: name for n, name in names.items() if (run.path / f"{name}.safetensors").exists()}
    if not saved:
        return []
    data = _validation_data(run)
    steps = len(run.records("step")) // max(1, epochs)
    found = []
    for number, name in saved.items():
        masks = run.load_weights(name)  # in arbitrary order
        predictions = _predictions(masks, len(data), f"{run.path / name}.safetensors")
        found.append(_scored(data, space, number, number * steps, predictions))
    return found


def _predictions(masks: Mapping[str, Tensor], images: int, source: str) -> dict[int, Tensor]:
    """The saved class maps by the index of their image; raises :class:`UserError` if they are none."""
    known = {str(index) for index in range(images)}
    if not masks or not masks.keys() <= known or any(m.dim() != 2 or m.dtype != torch.uint8 for m in masks.values()):
        raise UserError(f"{source}: not the predictions of a search on {images} images; remove the file")
    return {index: masks[f"{index}"].long() for index in sorted(map(int, masks))}


def _scored(
    data: SegmentationDataset, space: RegSegSpace, epochs: int, step: int, predictions: dict[int, Tensor]
) -> Snapshot:
    metrics, correct, total = SegmentationMetrics(data.labels.names), 0, 0
    transform = eval_transform(space.search.augmentation)
    for index, prediction in predictions.items():
        _, labels = transform(*data[index])
        if prediction.shape != labels.shape or int(prediction.max()) >= data.labels.num_classes:
            raise UserError(f"{data.name}: the saved predictions do not fit its images or classes; remove them")
        metrics.update(prediction[None], labels[None])
        image_correct, image_total = top_quarter(prediction, labels)
        correct, total = correct + image_correct, total + image_total
    has_tops = data.name == "rectangles" and total
    return Snapshot(epochs, step, predictions, metrics.result().miou, correct / total if has_tops else None)


def growth_of(run: RunFolder, space: RegSegSpace, problem: RateSearch, snapshots: Sequence[Snapshot]) -> Growth | None:
    """The stages of the saved image that shows the most classes; None with fewer than two snapshots.

    ``problem`` is in its initial state: its rates and field of view are those of step 0.
    """
    if len(snapshots) < 2:
        return None
    data = _validation_data(run)
    transform = eval_transform(space.search.augmentation)
    # Selected by the labels alone, independent of the predictions.
    index = max(snapshots[0].predictions, key=lambda number: _visible_classes(transform(*data[number])[1]))
    image, mask = data[index]
    _, labels = transform(image, mask)
    initial, records = problem.monitor(), epoch_records(run, problem.layers)
    stages = [_stage(snapshot, index, initial, records) for snapshot in _select_stages(snapshots)]
    return Growth(
        image=image.permute(1, 2, 0).numpy().astype(np.uint8),
        truth=labels.numpy(),
        stages=stages,
        scale=_scale(problem),
        pixel=_pixel(labels),
        labels=ClassLabels(names=data.labels.names, colours=data.labels.colours),
    )


def _stage(snapshot: Snapshot, index: int, initial: dict[str, Any], records: Sequence[dict[str, Any]]) -> Stage:
    state = initial if snapshot.epochs == 0 else records[snapshot.epochs - 1]
    return Stage(
        step=snapshot.step,
        prediction=snapshot.predictions[index].numpy(),
        rates=list(by_block(state["rates"]).values()),
        field_of_view=int(state["field_of_view"]),
        note=snapshot.note(),
    )


def _select_stages(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """At most MAX_STAGES snapshots: the first, the last, and those at a half, a quarter, an eighth of the search."""
    last = len(snapshots) - 1
    if last < MAX_STAGES:
        return list(snapshots)
    selected = {0, *(round(last / 2**halvings) for halvings in range(MAX_STAGES - 1))}
    return [snapshots[index] for index in sorted(selected)]


def _scale(problem: RateSearch) -> int:
    """Downsampling rate of the output of the searched layers, in pixels."""
    fields = fields_around(problem.weights, problem.layers)
    return round(max(float(after.stride) for _, after in fields.values()))


def _segments(labels: Tensor) -> list[tuple[int, int, int]]:
    """Width, left edge and class of the segments in row H / _ROW, without class 0 and ignored pixels."""
    line = labels[labels.shape[0] // _ROW].tolist()
    found, start = [], 0
    for number, group in groupby(line):
        width = len(list(group))
        if number not in (0, IGNORE_LABEL):
            found.append((width, start, int(number)))
        start += width
    return found


def _visible_segments(labels: Tensor) -> list[tuple[int, int, int]]:
    """The segments that are wide enough to be visible in a small picture."""
    return [segment for segment in _segments(labels) if segment[0] >= labels.shape[1] / 32]


def _visible_classes(labels: Tensor) -> int:
    """The number of visible classes."""
    return len({number for _, _, number in _visible_segments(labels)})


def _pixel(labels: Tensor) -> tuple[int, int]:
    """(row, column) near the top, at the centre of the visible segment that is nearest to the image's centre."""
    height, image_width = labels.shape
    centres = [left + width // 2 for width, left, _ in _visible_segments(labels)]
    return height // _ROW, min(centres, key=lambda column: abs(column - image_width / 2), default=image_width // 2)


def _validation_data(run: RunFolder) -> SegmentationDataset:
    source = str(run.path / "configuration.yaml")
    found = open_dataset(parse_config(DataConfig, run.configuration["data"], source), "val")
    return match_classes(found, run.configuration.get("classes", found.labels.names), str(run.path))
