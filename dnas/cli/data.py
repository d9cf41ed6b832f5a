"""``dnas data``: check images and masks, and describe folders as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from dnas.cli.common import DataSetOption, JsonOption, note, print_json
from dnas.errors import UserError

app = typer.Typer(
    help="Images and masks: check the files, and describe folders as they are.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Images with masks, polygons, or a table of datasets.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for data.yaml, classes.yaml and files.csv; default: DIR.")
    ] = None,
    images: Annotated[
        str | None, typer.Option("--images", metavar="PATTERN", help="Which files are images, such as 'photos/*.jpg'.")
    ] = None,
    masks: Annotated[
        str | None, typer.Option("--masks", metavar="PATTERN", help="Which files are masks, such as 'annotated/*.png'.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option("--classes", help="Table of names and colours or values: CSV, JSON or text.")
    ] = None,
    outside: Annotated[
        str, typer.Option("--outside", help="Pixels outside of all polygons: background or ignore.")
    ] = "background",
    val_share: Annotated[
        float, typer.Option("--val-share", min=0.01, max=0.9, help="Share drawn for validation where there is none.")
    ] = 0.2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the drawn validation images.")] = 0,
) -> None:
    """Describe a folder as it is: which images and masks belong together, splits, classes, bit depth, channels.

    Finds masks by folder or ending, and reads labelme, CVAT, Label Studio, COCO and YOLO polygons.
    """
    from dnas.data.discovery import InitOptions, describe_folder
    from dnas.progress import RichProgress

    if outside not in ("background", "ignore"):
        raise UserError(f"outside {outside!r}: expected background or ignore")
    options = InitOptions(
        images=images,
        masks=masks,
        classes=classes,
        outside=cast("Literal['background', 'ignore']", outside),
        val_share=val_share,
        seed=seed,
    )
    with RichProgress() as progress:
        found = describe_folder(folder, out or folder, options, progress)
    for text in found.notes:
        note(f"  {text}")
    splits = ", ".join(f"{count} {split}" for split, count in found.images.items())
    note(f"{found.data_file}: {splits}; {len(found.classes)} classes. Next: dnas data check {found.data_file}")


@app.command()
def check(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Preset, YAML file, or NAME:DIR such as camvid:DIR.")],
    report: Annotated[Path | None, typer.Option("--report", help="Also write an HTML page with examples.")] = None,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Images of each split to read, evenly spaced; default: all.")
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Examples of each split on the page.")] = 3,
    data_settings: DataSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every file: pixels and images of each class, sizes, what is skipped, wrong or doubtful.

    Ends with status 2 if a file or a split cannot be used.
    """
    from dnas.data import load_data_config
    from dnas.progress import RichProgress
    from dnas.workflows.data_check import check_data, write_check

    config = load_data_config(data, data_settings or [])
    with RichProgress() as progress:
        found, datasets = check_data(config, images=images, progress=progress)
    if report is not None:
        write_check(report, found, datasets, examples)
        note(f"{report}: written")
    if as_json:
        print_json(found.to_mapping())
    else:
        for line in found.lines():
            print(line)
    if found.errors:
        raise UserError(f"{data}: {len(found.errors)} errors, the first: {found.errors[0]}")
