"""``dnas data``: check images and masks, and describe folders as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dnas.cli.common import DataSetOption, JsonOption, note, print_json
from dnas.errors import UserError

app = typer.Typer(
    help="Images and masks: check the files, and describe folders as they are.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


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
