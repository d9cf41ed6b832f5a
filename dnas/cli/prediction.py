"""``dnas predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dnas.cli.common import DeviceOption, JsonOption, note, parse_size, print_json
from dnas.cli.networks import BackendOption, TrustOption
from dnas.errors import UserError


def predict(
    model: Annotated[str, typer.Argument(metavar="RUN|FILE", help="Run of dnas retrain, .onnx, .pt2 or .engine.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Images, videos, folders or patterns.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write class maps and overlays to.")],
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW", help="Resize images to this size; default: that of the network."),
    ] = None,
    tile: Annotated[
        str | None,
        typer.Option("--tile", metavar="HxW", help="Predict large images in tiles of this size, at their own size."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option("--overlap", min=0, help="Pixels that tiles overlap; default: a quarter of a tile.")
    ] = None,
    overlays: Annotated[
        bool, typer.Option("--overlays/--no-overlays", help="Also images with coloured classes.")
    ] = True,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also the probabilities of all classes, as .npy.")
    ] = False,
    device: DeviceOption = "auto",
    backend: BackendOption = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of an exported file.")] = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict images, videos or folders of them: class maps as PNG, overlays, probabilities."""
    from dnas.progress import RichProgress
    from dnas.workflows.pictures import find_pictures
    from dnas.workflows.predicting import Tiles, load_predictor, predict_pictures

    tile_size = parse_size(tile)
    if tile_size is None and overlap is not None:
        raise UserError("--overlap is for --tile")
    tiles = None
    if tile_size is not None:
        tiles = Tiles(size=tile_size, overlap=min(tile_size) // 4 if overlap is None else overlap)
    pictures, skipped = find_pictures(images, without=out)
    predictor = load_predictor(
        model, size=parse_size(size), tiles=tiles, device=device, backend=backend, threads=threads, trust=trust
    )
    kinds = ["classes", *["overlays"] * overlays, *["probabilities"] * probabilities]
    with RichProgress() as progress:
        progress.begin(f"predicting {len(pictures)} files", len(pictures))
        result = predict_pictures(predictor, pictures, out, kinds, progress)
    if skipped:
        note(f"skipped {skipped} files that are neither images nor videos")
    if result.failed:
        raise UserError(
            f"{len(result.failed)} of {len(pictures)} files could not be read, the first: {result.failed[0]}"
        )
    if as_json:
        rates = {"fps": result.fps, "network_fps": result.network_fps}
        print_json({"images": result.images, "seconds": result.seconds, **rates, "out": str(out)})
        return
    print(
        f"{out}: {result.images} images, {result.fps:.1f} a second; {result.network_fps:.1f} a second without reading "
        "and writing"
    )
