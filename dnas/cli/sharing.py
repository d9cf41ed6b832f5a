"""``dnas share``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dnas.cli.common import note
from dnas.cli.networks import load_run
from dnas.errors import UserError


def share(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of dnas retrain.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write: safetensors, configuration and card.")],
    licence: Annotated[str | None, typer.Option("--licence", "--license", help="Licence of the weights.")] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="USER/NAME", help="Also upload to this repository of the Hub.")
    ] = None,
) -> None:
    """Write a trained network in the form of the Hugging Face Hub, and upload it with --push."""
    loaded = load_run(run)
    try:
        from dnas.workflows.hub import hub_network
    except ImportError:
        raise UserError('sharing needs huggingface_hub; install it with: pip install "dnas[hub]"') from None

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists; give another folder, or remove it")
    shared = hub_network(loaded, licence)
    shared.save_pretrained(out)
    note(f"{out}: written; use it like a run, for example: dnas predict {out} IMAGES --out predictions")
    if push is not None:
        shared.push_to_hub(push)
        note(f"uploaded to {push}")
