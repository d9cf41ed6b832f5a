"""``dnas export``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from dnas.cli.common import DataSetOption, JsonOption, note, parse_size, print_json
from dnas.cli.networks import SizeOption, load_run
from dnas.errors import UserError


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of dnas retrain.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write; a model card is written beside it.")],
    file_format: Annotated[str, typer.Option("--format", help="onnx, torch or tensorrt.")] = "onnx",
    size: SizeOption = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16 or int8.")] = "fp32",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per call, fixed in the file.")] = 1,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Allow any batch size (not for tensorrt).")
    ] = False,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Allow images of any size (not for tensorrt).")
    ] = False,
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX opset, from 18; default: 20.")] = None,
    end_to_end: Annotated[
        bool,
        typer.Option("--end-to-end", help="Images uint8 in, class map out: resize, normalisation, argmax in the file."),
    ] = False,
    resize: Annotated[
        str | None,
        typer.Option("--resize", help="Of an end-to-end file: bilinear or nearest in the file, or none (outside)."),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option("--image-size", metavar="HxW", help="Images of an end-to-end file, if not the input size."),
    ] = None,
    layout: Annotated[str | None, typer.Option("--layout", help="Images of an end-to-end file: nchw or nhwc.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="Licence of the weights, for metadata and card.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Images to compare on; default: the validation images of the run.")
    ] = None,
    data_settings: DataSetOption = None,
    quantiser: Annotated[str, typer.Option("--quantiser", help="Of int8: onnxruntime or nncf.")] = "onnxruntime",
    calibration_images: Annotated[
        int, typer.Option("--calibration-images", min=1, help="Of int8: training images for the ranges of activations.")
    ] = 64,
    score_images: Annotated[
        int, typer.Option("--score-images", min=0, help="Of int8: validation images for the mIoU; 0: all.")
    ] = 100,
    largest_drop: Annotated[
        float,
        typer.Option("--largest-drop", min=0, help="Of int8: points of mIoU; if more is lost, layers are left out."),
    ] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Export a retrained network for a runtime, and compare its outputs with PyTorch on real images."""
    from dnas.data import load_data_config
    from dnas.export import EndToEnd
    from dnas.export.card import parity_text
    from dnas.progress import RichProgress
    from dnas.workflows.comparing import table_lines
    from dnas.workflows.exporting import ExportRequest, export_run
    from dnas.workflows.quantising import QuantisationConfig

    loaded = load_run(run)
    if not end_to_end and (resize or image_size or layout):
        raise UserError("--resize, --image-size and --layout are for --end-to-end")
    if dynamic_batch and batch != 1:
        raise UserError("--batch and --dynamic-batch exclude each other")
    whole = EndToEnd(resize=resize or "bilinear", image_size=parse_size(image_size), layout=layout or "nchw")
    request = ExportRequest(
        file_format=file_format,
        input_size=parse_size(size),
        precision=precision,
        batch=batch,
        dynamic_batch=dynamic_batch,
        dynamic_size=dynamic_size,
        opset=opset,
        end_to_end=whole if end_to_end else None,
        licence=licence,
        data=None if data is None else load_data_config(data, data_settings or []),
        quantisation=QuantisationConfig(
            quantiser=quantiser,
            calibration_images=calibration_images,
            score_images=score_images,
            largest_drop=largest_drop / 100,
        ),
    )
    with RichProgress() as progress:
        result = export_run(loaded, out, request, progress)
    for text in result.notes:
        note(text)
    if as_json:
        parity = dataclasses.asdict(result.parity)
        print_json({"file": str(out), "parity": parity, "excluded": result.excluded, "rows": result.rows})
    elif result.rows:
        for line in table_lines(result.rows):
            print(line)
    if result.excluded:
        note(f"{len(result.excluded)} layers stay in floating point: {', '.join(result.excluded)}")
    height, width = result.input_size
    note(f"{out}: {file_format}, {height}x{width}; compared with PyTorch: {parity_text(result.parity)}")
