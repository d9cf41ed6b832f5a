"""RegSeg v3, Table 5: a searched network with its fractional rates, and with the rounded ones.

    python -m scripts.papers.rates RUN --data DATA [--retrained RUN] [--device cpu] [--precision fp32]

RUN is the run folder of ``dnas search regseg``. Prints mIoU and FPS of its network with fractional rates, with rounded
rates and the same weights, and, as the paper does, with rounded rates and the weights of ``dnas retrain``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dnas.data import SegmentationDataset, load_data_config, match_classes, open_dataset
from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.export import benchmark
from dnas.training import evaluate
from dnas.workflows.networks import LoadedNetwork, load_network

PRINTED = {"fractional rates": "78.57 ± 0.39 % at 18 FPS", "rounded, retrained": "78.65 ± 0.28 % at 30 FPS"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit status is 2 for a user error, which is printed in one line."""
    parser = argparse.ArgumentParser(prog="scripts.papers.rates", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--split", default="val")
    parser.add_argument("--retrained", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args(arguments)
    try:
        print("\n".join(_lines(options)))
    except UserError as error:
        print(f"rates: {error}", file=sys.stderr)
        return 2
    return 0


def _lines(options: argparse.Namespace) -> list[str]:
    networks = {
        "fractional rates": load_network(str(options.run)),
        "rounded, same weights": load_network(str(options.run), rounded=True),
    }
    if options.retrained is not None:
        networks["rounded, retrained"] = load_network(str(options.retrained))
    dataset = open_dataset(load_data_config(options.data, options.data_set), options.split)
    lines = ["| rates | mIoU (%) | FPS | paper |", "|---|---|---|---|"]
    for name, loaded in networks.items():
        miou, fps = _measured(loaded, dataset, options)
        lines.append(f"| {name} | {100 * miou:.2f} | {fps:.1f} | {PRINTED.get(name, '')} |")
    return lines


def _measured(loaded: LoadedNetwork, dataset: SegmentationDataset, options: argparse.Namespace) -> tuple[float, float]:
    """The mIoU and the frames per second."""
    assert loaded.augmentation is not None
    device = resolve_device(options.device)
    if loaded.class_names is not None:
        dataset = match_classes(dataset, loaded.class_names, loaded.name)
    scores = evaluate(loaded.network, dataset, loaded.augmentation, device=device)
    size = loaded.input_size or dataset.image_size
    speed = benchmark(loaded.network, size, device=device, precision=options.precision, seconds=options.seconds)
    return scores.miou, float(speed["fps"])


if __name__ == "__main__":
    sys.exit(main())
