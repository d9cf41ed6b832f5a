"""``dnas evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnas.cli.common import (
    DataOption,
    DataSetOption,
    DeviceOption,
    JsonOption,
    RatesOption,
    note,
    parse_factors,
    parse_size,
    print_json,
    wants_rounded,
)
from dnas.cli.networks import BackendOption, TrustOption
from dnas.errors import UserError

if TYPE_CHECKING:
    from dnas.training import Evaluation, InferenceConfig

InputSizeOption = Annotated[
    str | None,
    typer.Option("--input-size", "--size", metavar="HxW", help="Resize images for the network; labels keep theirs."),
]
ScalesOption = Annotated[
    str, typer.Option("--scales", metavar="LIST", help="Average predictions at these factors of the input size.")
]
FlipOption = Annotated[bool, typer.Option("--flip", help="Average with the prediction for the mirrored image.")]
WindowOption = Annotated[
    str | None, typer.Option("--window", metavar="HxW", help="Predict in overlapping windows of this size.")
]
StrideOption = Annotated[
    str | None, typer.Option("--stride", metavar="HxW", help="Distance of the windows; default: two thirds of one.")
]


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN|FILE", help="Run of dnas retrain or of a search of rates, .onnx, .pt2 or .engine."),
    ],
    data: DataOption,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "val",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per batch.")] = 1,
    device: DeviceOption = "auto",
    data_settings: DataSetOption = None,
    input_size: InputSizeOption = None,
    scales: ScalesOption = "1",
    flip: FlipOption = False,
    window: WindowOption = None,
    stride: StrideOption = None,
    without: Annotated[
        str | None, typer.Option("--without", metavar="CLASSES", help="Also the mIoU without these, with commas.")
    ] = None,
    boundary: Annotated[
        float | None,
        typer.Option("--boundary", metavar="SHARE", help="Also boundary IoU, within this share of the diagonal."),
    ] = None,
    confusion: Annotated[
        Path | None, typer.Option("--confusion", help="Draw the confusion matrix, as SVG or PNG.")
    ] = None,
    rates: RatesOption = "searched",
    backend: BackendOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a trained network or an exported file on images: mIoU, IoU of every class, pixel accuracy."""
    from dnas.data import load_data_config, open_dataset
    from dnas.progress import RichProgress
    from dnas.report import save_figure
    from dnas.report.confusion import confusion_chart
    from dnas.workflows.evaluating import open_scored

    if boundary is not None and not 0 < boundary < 1:
        raise UserError(f"--boundary {boundary:g}: expected a share of the image's diagonal, for example 0.02")
    if confusion is not None and confusion.suffix not in (".svg", ".png"):
        raise UserError(f"{confusion}: expected a file name that ends in .svg or .png")
    options = inference_options(input_size, scales, flip, window, stride)
    scored = open_scored(
        run,
        open_dataset(load_data_config(data, data_settings or []), split),
        size=parse_size(input_size),
        device=device,
        backend=backend,
        rounded=wants_rounded(rates),
        trust=trust,
    )
    dataset = scored.dataset
    left_out = () if without is None else tuple(name.strip() for name in without.split(","))
    if unknown := [name for name in left_out if name not in dataset.labels.names]:
        raise UserError(f"--without: no class {unknown[0]!r}, expected some of {', '.join(dataset.labels.names)}")
    for text in scored.notes:
        note(text)
    with RichProgress() as progress:
        progress.begin(f"evaluating {len(dataset)} images", len(dataset))
        result = scored.evaluate(batch_size=batch_size, inference=options, boundary=boundary, progress=progress)
    if confusion is not None:
        save_figure(confusion_chart(dataset.labels.names, result.confusion), confusion)
    if as_json:
        without_some = {"miou_without": result.miou_without(left_out)} if left_out else {}
        print_json(result.to_mapping() | without_some | scored.about)
        return
    for line in _lines(result, left_out):
        print(line)


def inference_options(
    input_size: str | None, scales: str, flip: bool, window: str | None, stride: str | None
) -> InferenceConfig:
    """The options of a command as a configuration."""
    from dnas.config import parse_config
    from dnas.training import InferenceConfig

    values = {
        "input_size": parse_size(input_size),
        "scales": parse_factors(scales, "--scales"),
        "flip": flip,
        "window": parse_size(window),
        "stride": parse_size(stride),
    }
    return parse_config(InferenceConfig, values, "options of the prediction")


def _lines(result: Evaluation, left_out: tuple[str, ...]) -> list[str]:
    lines = []
    for name, value in result.iou.items():
        near = "" if result.boundary_iou is None else f"   boundary {_percent(result.boundary_iou[name])}"
        lines.append(f"  {name:<16} {_percent(value)}{near}")
    total = f"mIoU {100 * result.miou:.2f} %"
    if result.boundary_miou is not None:
        total += f"   boundary mIoU {100 * result.boundary_miou:.2f} %"
    if result.reduced_miou is not None:
        total += f"   reduced mIoU {100 * result.reduced_miou:.2f} %"
    if left_out:
        total += f"   without {', '.join(left_out)} {100 * result.miou_without(left_out):.2f} %"
    return [*lines, f"{total}   pixel accuracy {100 * result.pixel_accuracy:.2f} %   {result.images} images"]


def _percent(value: float | None) -> str:
    return "absent" if value is None else f"{100 * value:5.1f} %"
