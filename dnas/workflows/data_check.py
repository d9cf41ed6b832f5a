"""Checking the files of a dataset: all of them as a job of its own, or a sample before a search or a retraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnas.data import DataConfig, Labels, SegmentationDataset, evenly_spaced, open_dataset
from dnas.data.checking import SplitFacts, errors_of, look_at, warnings_of
from dnas.data.config import BUILT_IN
from dnas.environment import process_rank
from dnas.errors import UserError
from dnas.input_channels import as_rgb
from dnas.progress import NoProgress, Progress
from dnas.report import Bar, Definitions, Fact, Gallery, Picture, ReportData, Section, Swatch, Table, write_report
from dnas.report.pictures import encode_photo
from dnas.training.class_weights import weights_of_shares

SAMPLED_IMAGES = 64
"""Images of each split that are read before a search or a retraining."""

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DataCheck:
    """What a dataset holds: its splits, what is wrong, and what is doubtful."""

    data: DataConfig
    labels: Labels
    splits: tuple[SplitFacts, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    weights: dict[str, tuple[float, ...]]
    """Class weights that suit the shares of the classes, by the name of their rule; empty without labelled pixels."""

    def to_mapping(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        return {
            "dataset": self.data.dataset,
            "classes": list(self.labels.names),
            "splits": {split.split: _plain(split) for split in self.splits},
            "errors": list(self.errors),
            "warnings": list(self.warnings),
            "class_weights": {rule: list(weights) for rule, weights in self.weights.items()},
        }

    def lines(self) -> list[str]:
        """The check as readable lines."""
        found = []
        for split in self.splits:
            sizes = ", ".join(f"{width}x{height} ({count})" for (height, width), count in list(split.sizes.items())[:4])
            more = f" and {len(split.sizes) - 4} more sizes" if len(split.sizes) > 4 else ""
            found.append(f"{split.split}: {split.looked_at} of {split.total} images read, {sizes}{more}")
        width = max(len(name) for name in self.labels.names)
        header = "".join(f"{split.split + ' %':>10}{'images':>8}" for split in self.splits)
        found.append(f"  {'class':<{width}}{header}")
        for index, name in enumerate(self.labels.names):
            cells = (f"{100 * split.shares[index]:>10.2f}{split.images[index]:>8}" for split in self.splits)
            found.append(f"  {name:<{width}}{''.join(cells)}")
        found += [f"warning: {text}" for text in self.warnings]
        found += [f"error: {text}" for text in self.errors]
        for rule, weights in self.weights.items():
            found.append(f"class_weights {rule}: {', '.join(f'{weight:.2f}' for weight in weights)}")
        return found


def check_data(
    data: DataConfig, *, images: int | None = None, progress: Progress | None = None
) -> tuple[DataCheck, list[SegmentationDataset]]:
    """Read all files of ``data``, or at most ``images`` of each split, evenly spaced; also the datasets.

    A split that cannot be opened is an error of the check, but for ``test``, which may be missing. Raises
    :class:`UserError` if there is no split to read.
    """
    progress = progress or NoProgress()
    datasets: list[SegmentationDataset] = []
    errors: list[str] = []
    for split in _SPLITS:
        found = _opened(data, split)
        if isinstance(found, SegmentationDataset):
            datasets.append(found)
        elif split != "test":
            errors.append(found)
    if not datasets:
        raise UserError(errors[0])
    splits = tuple(_look(dataset, images, progress) for dataset in datasets)
    errors += [text for split in splits for text in errors_of(split)]
    check = DataCheck(
        data=data,
        labels=datasets[0].labels,
        splits=splits,
        errors=tuple(errors),
        warnings=tuple(warnings_of(splits)),
        weights=_suggested_weights(splits[0]),
    )
    return check, datasets


def check_sample(
    splits: Sequence[SegmentationDataset], data: DataConfig, images: int | None, progress: Progress | None
) -> None:
    """Read ``images`` of each split before long work: errors are raised, doubts are printed.

    0 images are no check, None all. Generated images are not checked, and only the first process checks.
    """
    if images == 0 or data.dataset in BUILT_IN or process_rank() > 0:
        return
    progress = progress or NoProgress()
    found = [_look(dataset, images, progress) for dataset in splits]
    errors = [text for split in found for text in errors_of(split)]
    if errors:
        looked_at = sum(split.looked_at for split in found)
        more = f" (and {len(errors) - 1} more of {looked_at} images that were read)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}; dnas data check DATA lists everything")
    for text in warnings_of(found):
        progress.message(f"data: {text}")


def write_check(path: Path, check: DataCheck, datasets: Sequence[SegmentationDataset], examples: int = 3) -> None:
    """Write a page with the check and example overlays of each split."""
    read = sum(split.looked_at for split in check.splits)
    facts = [
        Fact("Images", str(read), "", "read"),
        Fact("Classes", str(check.labels.num_classes)),
        Fact("Errors", str(len(check.errors))),
        Fact("Warnings", str(len(check.warnings))),
    ]
    sections = [*_findings(check), _classes(check), _sizes(check)]
    gallery = _overlays(datasets, examples)
    if gallery is not None:
        lead = "Images with the colours of their masks; ignored pixels keep the image."
        sections.append(Section(title="Examples", lead=lead, blocks=[gallery]))
    title = f"Data: {check.data.dataset}"
    write_report(path, ReportData(title=title, subtitle=check.data.root or "", summary=facts, extra=sections))


def overlay(image: torch.Tensor, mask: torch.Tensor, labels: Labels) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image uint8 (C, H, W) mixed with the colours of its mask (H, W), as uint8 (H, W, 3)."""
    pixels = as_rgb(image.as_subclass(torch.Tensor)).permute(1, 2, 0).numpy().astype(np.float32)
    indices = mask.as_subclass(torch.Tensor).numpy()
    mixed = np.where((indices == 255)[..., None], pixels, 0.45 * pixels + 0.55 * labels.colourise(indices))
    return mixed.astype(np.uint8)


def _opened(data: DataConfig, split: str) -> SegmentationDataset | str:
    """A split, or why it cannot be opened."""
    try:
        return open_dataset(data, split)
    except UserError as error:
        return str(error)


def _look(dataset: SegmentationDataset, images: int | None, progress: Progress) -> SplitFacts:
    indices = evenly_spaced(len(dataset), min(len(dataset), images or len(dataset)))
    progress.begin(f"reading {dataset.split}", len(indices))
    return look_at(dataset, indices, progress.advance)


def _suggested_weights(split: SplitFacts) -> dict[str, tuple[float, ...]]:
    if not sum(split.pixels):
        return {}
    shares = torch.tensor(split.shares, dtype=torch.float64)
    return {rule: tuple(weights_of_shares(rule, shares).tolist()) for rule in ("enet", "median_frequency")}


def _plain(split: SplitFacts) -> dict[str, Any]:
    return {
        "images": split.total,
        "read": split.looked_at,
        "pixels": dict(zip(split.names, split.pixels, strict=True)),
        "images_with": dict(zip(split.names, split.images, strict=True)),
        "ignored_pixels": split.ignored,
        "sizes": [{"height": height, "width": width, "images": n} for (height, width), n in split.sizes.items()],
        "skipped": list(split.skipped),
        "problems": list(split.problems),
    }


def _findings(check: DataCheck) -> list[Section]:
    rows = [("error", text) for text in check.errors] + [("warning", text) for text in check.warnings]
    lead = "What is wrong, and what is doubtful." if rows else "Nothing wrong and nothing doubtful was found."
    blocks = [Table(header=("kind", "what"), rows=rows)] if rows else []
    return [Section(title="Findings", lead=lead, blocks=blocks)]


def _classes(check: DataCheck) -> Section:
    rows = [
        (
            name,
            *(
                cell
                for split in check.splits
                for cell in (
                    Bar(f"{100 * split.shares[index]:.2f} %", split.shares[index]),
                    f"{split.pixels[index]:,}",
                    str(split.images[index]),
                )
            ),
            *(f"{weights[index]:.2f}" for weights in check.weights.values()),
        )
        for index, name in enumerate(check.labels.names)
    ]
    header = ["class"]
    for split in check.splits:
        header += [f"{split.split}: share", "pixels", "images"]
    header += [f"weight ({rule})" for rule in check.weights]
    numeric = [column for column, name in enumerate(header) if column and not name.endswith("share")]
    return Section(
        title="Classes",
        lead="Pixels and images of each class, and weights for the option class_weights.",
        blocks=[Table(header=header, rows=rows, numeric=numeric)],
    )


def _sizes(check: DataCheck) -> Section:
    items = []
    for split in check.splits:
        sizes = ", ".join(f"{width}x{height} ({n})" for (height, width), n in list(split.sizes.items())[:12])
        ignored = 100 * split.ignored / max(1, split.ignored + sum(split.pixels))
        items.append((split.split, f"{split.looked_at} of {split.total} images read: {sizes}; {ignored:.2f} % ignored"))
        items += [(f"{split.split}, not read", text) for text in split.skipped]
    return Section(title="Files", lead="Sizes are width by height in pixels.", blocks=[Definitions(items=items)])


def _overlays(datasets: Sequence[SegmentationDataset], count: int) -> Gallery | None:
    rows = []
    for dataset in datasets:
        pictures = []
        for index in evenly_spaced(len(dataset), min(count, len(dataset))):
            try:
                image, mask = dataset[index]
            except UserError:
                continue
            data = encode_photo(overlay(image, mask, dataset.labels))
            pictures.append(Picture(data=data, caption=dataset.file_name(index)))
        if pictures:
            rows.append(pictures)
    legend = [Swatch(*pair) for pair in zip(datasets[0].labels.names, datasets[0].labels.colours, strict=True)]
    return Gallery(rows=rows, caption="Masks over images, a row for each split.", legend=legend) if rows else None
