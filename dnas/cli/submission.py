"""``dnas submission``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dnas.cli.common import DataOption, DeviceOption, ResumeOption, note
from dnas.cli.evaluation import (
    FlipOption,
    InputSizeOption,
    ScalesOption,
    StrideOption,
    WindowOption,
    inference_options,
)
from dnas.errors import UserError


def submission(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of dnas retrain.")],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the files.")],
    split: Annotated[str, typer.Option("--split", help="test, val to check the files, or train_extra.")] = "test",
    confidence: Annotated[
        float | None,
        typer.Option("--confidence", min=0.0, max=1.0, help="Leave pixels below this probability unlabelled."),
    ] = None,
    archive: Annotated[Path | None, typer.Option("--zip", help="Also pack the files into this archive.")] = None,
    device: DeviceOption = "auto",
    input_size: InputSizeOption = None,
    scales: ScalesOption = "1",
    flip: FlipOption = False,
    window: WindowOption = None,
    stride: StrideOption = None,
    resume: ResumeOption = False,
) -> None:
    """Write predictions as the test server of Cityscapes takes them: label ids as PNG files.

    Of the images without fine labels, --split train_extra, such files are pseudo labels to train on.
    """
    from dnas.data import load_data_config
    from dnas.device import resolve_device
    from dnas.progress import RichProgress
    from dnas.workflows.networks import load_network
    from dnas.workflows.submission import write_submission, zip_submission

    config = load_data_config(data)
    if config.dataset != "cityscapes" or config.root is None:
        raise UserError(f"{data}: files for a test server are written for Cityscapes; use cityscapes:DIR")
    if split not in ("test", "val", "train", "train_extra"):
        raise UserError(f"split {split!r}: expected test, val, train or train_extra")
    options = inference_options(input_size, scales, flip, window, stride)
    if not run.is_dir():
        raise UserError(f"{run}: no such folder, expected a run folder of dnas retrain")
    with RichProgress() as progress:
        files = write_submission(
            load_network(str(run)),
            Path(config.root),
            out,
            split=split,
            inference=options,
            confidence=confidence,
            device=resolve_device(device),
            resume=resume,
            progress=progress,
        )
    if archive is not None:
        zip_submission(files, archive)
    note(f"{len(files)} files in {out}" + ("" if archive is None else f", packed into {archive}"))
