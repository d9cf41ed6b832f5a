"""Run one part of the first session on a GPU.

    python -m scripts.first_gpu PART [--out DIR] [--dry-run]

``scripts/first_gpu.sh`` runs all of them. A part writes DIR/PART.jsonl, a line for each step; the next call skips what
is finished. ``--dry-run`` rehearses the part on the CPU at toy size; its rows do not enter the tables.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from dnas.training import fix_workspace
from scripts.first_gpu import fractional, latency, loader, search_step, smoke
from scripts.first_gpu.session import Session, Step, run_part
from scripts.first_gpu.tables import RESULTS

PARTS: Mapping[str, Callable[[Session], Sequence[Step]]] = {
    "smoke": smoke.steps,
    "search_step": search_step.steps,
    "latency": latency.steps,
    "fractional": fractional.steps,
    "loader": loader.steps,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if a step failed, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(prog="scripts.first_gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--out", type=Path, help="folder of the results; default: docs/first_gpu, or a temporary one")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy size")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("first_gpu: PyTorch finds no usable GPU; --dry-run rehearses on the CPU", file=sys.stderr)
        return 2
    rehearsal = Path(tempfile.gettempdir()) / "dnas_first_gpu"
    fix_workspace(True)  # before CUDA is initialised, for the steps that are deterministic
    session = Session(options.out or (rehearsal if options.dry_run else RESULTS), options.dry_run)
    failed = run_part(options.part, PARTS[options.part](session), session)
    for name in failed:
        print(f"first_gpu: {options.part}: failed: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
