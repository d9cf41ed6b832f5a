"""The stages of a search of dilation rates, from the predictions that its run folder kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from torch import Tensor

from derive.dilated.growth_picture import Growth, Stage
from derive.dilated.rounding import by_block
from dnas.config import parse_config
from dnas.data import IGNORE_LABEL, DataConfig, SegmentationDataset, eval_transform, open_dataset
from dnas.data.rectangles import top_quarter
from dnas.receptive_field import fields_around
from dnas.report import ClassLabels
from dnas.runs import RunFolder
from dnas.search.joint import predictions_name
from dnas.training import SegmentationMetrics
from search_spaces.regseg import RateSearch, RegSegSpace

MOST_STAGES = 5
_ROW = 8
"""The output whose sampling positions are drawn lies at this part of the height."""


@dataclass(frozen=True)
class Snapshot:
    """The predictions after ``epochs`` epochs, which are ``step`` steps, on the images that were kept.

    ``miou`` is a share; so is ``top_right``, the part of the rectangles' pixels in the top quarter that is right, which
    only the built-in rectangles have.
    """

    epochs: int
    step: int
    predictions: dict[int, Tensor]
    miou: float
    top_right: float | None

    def note(self) -> str:
        """The score as a line under a picture."""
        if self.top_right is None:
            return f"mIoU {100 * self.miou:.0f} %"
        return f"top {100 * self.top_right:.0f} % right"


def snapshots(run: RunFolder, space: RegSegSpace) -> list[Snapshot]:
    """What the search kept, in the order of its epochs; nothing where it was not asked to (search.keep_predictions)."""
    epochs = len(run.records("epoch"))
    names = {number: predictions_name(number) for number in range(epochs + 1)}
    kept = {n: name for n, name in names.items() if (run.path / f"{name}.safetensors").exists()}
    if not kept:
        return []
    data = _validation_data(run)
    steps = len(run.records("step")) // max(1, epochs)
    found = []
    for number, name in kept.items():
        masks = run.load_weights(name)  # in no order
        predictions = {index: masks[f"{index}"].long() for index in sorted(map(int, masks))}
        found.append(_scored(data, space, number, number * steps, predictions))
    return found


def _scored(
    data: SegmentationDataset, space: RegSegSpace, epochs: int, step: int, predictions: dict[int, Tensor]
) -> Snapshot:
    metrics, right, count = SegmentationMetrics(data.labels.names), 0, 0
    transform = eval_transform(space.search.augmentation)
    for index, prediction in predictions.items():
        _, labels = transform(*data[index])
        metrics.update(prediction[None], labels[None])
        found, there = top_quarter(prediction, labels)
        right, count = right + found, count + there
    has_tops = data.name == "rectangles" and count
    return Snapshot(epochs, step, predictions, metrics.result().miou, right / count if has_tops else None)


def growth_of(run: RunFolder, space: RegSegSpace, problem: RateSearch, taken: Sequence[Snapshot]) -> Growth | None:
    """The picture of the most colourful image that was kept; None where there is nothing to draw.

    ``problem`` is the search as it began: its rates and field of view are those of step 0.
    """
    if len(taken) < 2:
        return None
    data = _validation_data(run)
    transform = eval_transform(space.search.augmentation)
    # Judged by the labels alone, not by what was predicted.
    index = max(taken[0].predictions, key=lambda number: _colours(transform(*data[number])[1]))
    image, mask = data[index]
    _, labels = transform(image, mask)
    initial, records = problem.monitor(), run.records("epoch")
    stages = [_stage(snapshot, index, initial, records) for snapshot in _spread(taken)]
    return Growth(
        image=image.permute(1, 2, 0).numpy().astype(np.uint8),
        truth=labels.numpy(),
        stages=stages,
        scale=_scale(problem),
        pixel=_pixel(labels),
        labels=ClassLabels(names=data.labels.names, colours=data.labels.colours),
    )


def _stage(snapshot: Snapshot, index: int, initial: dict[str, Any], records: Sequence[dict[str, Any]]) -> Stage:
    now = initial if snapshot.epochs == 0 else records[snapshot.epochs - 1]
    return Stage(
        step=snapshot.step,
        prediction=snapshot.predictions[index].numpy(),
        rates=list(by_block(now["rates"]).values()),
        field_of_view=int(now["field_of_view"]),
        note=snapshot.note(),
    )


def _spread(taken: Sequence[Snapshot]) -> list[Snapshot]:
    """As many snapshots as have room: the first and the last, and those at a half, a quarter, an eighth of the way."""
    last = len(taken) - 1
    if last < MOST_STAGES:
        return list(taken)
    wanted = {0, *(round(last / 2**halvings) for halvings in range(MOST_STAGES - 1))}
    return [taken[index] for index in sorted(wanted)]


def _scale(problem: RateSearch) -> int:
    """Pixels of the image for one value of the maps that the searched layers write."""
    fields = fields_around(problem.weights, problem.layers)
    return round(max(float(after.stride) for _, after in fields.values()))


def _things(labels: Tensor) -> list[tuple[int, int, int]]:
    """Width, left edge and class of all that is not of class 0 or ignored in the row that is shown."""
    line = labels[labels.shape[0] // _ROW].tolist()
    found, start = [], 0
    for number, group in groupby(line):
        width = len(list(group))
        if number not in (0, IGNORE_LABEL):
            found.append((width, start, int(number)))
        start += width
    return found


def _visible(labels: Tensor) -> list[tuple[int, int, int]]:
    """Those that are wide enough to be seen in a small picture."""
    return [thing for thing in _things(labels) if thing[0] >= labels.shape[1] / 32]


def _colours(labels: Tensor) -> int:
    """The number of classes that can be seen."""
    return len({number for _, _, number in _visible(labels)})


def _pixel(labels: Tensor) -> tuple[int, int]:
    """A place near the top, in the middle of that visible thing which is nearest to the image's middle."""
    height, broad = labels.shape
    centres = [left + width // 2 for width, left, _ in _visible(labels)]
    return height // _ROW, min(centres, key=lambda column: abs(column - broad / 2), default=broad // 2)


def _validation_data(run: RunFolder) -> SegmentationDataset:
    source = str(run.path / "configuration.yaml")
    return open_dataset(parse_config(DataConfig, run.configuration["data"], source), "val")
