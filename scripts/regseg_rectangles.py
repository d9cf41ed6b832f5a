"""Does the search of dilation rates search? On `rectangles`, whose labels can be read only at their feet.

For each seed: search from all rates 1, derive whole rates, and train from scratch three networks of the same layers and
weights to begin with: with the derived rates, with all rates 1, and with random rates of the same field of view. Prints
a table in Markdown: mIoU, and the share of the rectangles' pixels in the top quarter of the image that are labelled
right, as mean and standard deviation over the seeds. Runs that are in the folder already are not done again.

    python scripts/regseg_rectangles.py --out DIR [--size 256] [--seeds 3] [--search-epochs 12] [--retrain-epochs 20]
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from derive import Architecture, DilatedArchitecture
from derive.dilated import BaseNetwork
from derive.dilated import with_rates as set_rates
from dnas.cli.common import network_at_hand
from dnas.cli.jobs import run_retraining, run_search
from dnas.cli.rates import derive_rates
from dnas.config import to_mapping
from dnas.data import DataConfig, batches, eval_transform, open_dataset
from dnas.data.seeding import mix_seed
from dnas.errors import UserError
from dnas.networks import dilation_bounds, field_of_view, network_by_name
from dnas.training import RichProgress, evaluate
from search_spaces import RegSegSpace, load_space

PRESET = "regseg_rectangles"
TRIES = 100_000


def main() -> None:
    options = parse_arguments()
    size = [options.size, options.size]
    space = load_space(
        PRESET,
        [
            f"target.input_size={size}",
            f"search.epochs={options.search_epochs}",
            f"search.architecture_learning_rate={options.rate_learning_rate}",
            f"retrain.epochs={options.retrain_epochs}",
        ],
    )
    if not isinstance(space, RegSegSpace):
        raise UserError(f"{PRESET}: not a search of dilation rates")
    data = DataConfig(
        dataset="rectangles",
        size=(options.size, options.size),
        images={"train": options.images, "val": 40, "test": 40},
        cache=True,
    )
    results: dict[str, list[tuple[float, float, int]]] = {}
    for seed in range(options.seeds):
        for name, architecture in architectures(space, data, options.out, seed).items():
            score = train(architecture, space, data, options.out / f"{name}_{seed}", seed)
            results.setdefault(name, []).append((*score, architecture.field_of_view()))
            print(f"seed {seed}, {name}: mIoU {100 * score[0]:.1f} %, top quarter {100 * score[1]:.1f} %", flush=True)
    print()
    print("\n".join(table(results)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--size", type=int, default=256, help="height and width of the images, for example 160")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--search-epochs", type=int, default=12)
    parser.add_argument("--retrain-epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=200, help="training images")
    parser.add_argument("--rate-learning-rate", type=float, default=5.0)
    return parser.parse_args()


def architectures(space: RegSegSpace, data: DataConfig, out: Path, seed: int) -> dict[str, DilatedArchitecture]:
    """What is compared: derived, all rates 1, and random rates of the derived field of view."""
    found = out / f"derived_{seed}.yaml"
    if not found.exists():
        with RichProgress() as progress:
            run_search(
                space, data, None, out / f"search_{seed}", seed=seed, resume=True, device="cpu", progress=progress
            )
        derive_rates(out / f"search_{seed}", space).architecture.save(found)
    derived = Architecture.load(found)
    assert isinstance(derived, DilatedArchitecture)
    ones = dict.fromkeys(derived.rates, 1)
    return {
        "derived": derived,
        "ones": with_rates(derived, ones),
        "random": with_rates(derived, random_rates(derived, seed)),
    }


def with_rates(architecture: DilatedArchitecture, rates: dict[str, int]) -> DilatedArchitecture:
    network = BaseNetwork(name=architecture.network.name, options=architecture.network.options)
    return DilatedArchitecture(network=network, rates=rates, num_classes=architecture.num_classes)


def random_rates(derived: DilatedArchitecture, seed: int) -> dict[str, int]:
    """Rates drawn until field of view and bounds are right; branches are drawn alike, so both of a block may grow."""
    generator = random.Random(mix_seed("random rates", seed))
    names = list(derived.rates)
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(name.rpartition(".")[0], []).append(name)
    # The field of view of blocks in a row is that of the sum of their largest rates.
    total = sum(max(derived.rates[name] for name in layers) for layers in blocks.values())
    wanted = derived.field_of_view()
    for _ in range(TRIES):
        rates: dict[str, int] = {}
        for layers, largest in zip(blocks.values(), _parts(total, len(blocks), generator), strict=True):
            drawn = [largest, *(generator.randint(1, largest) for _ in layers[1:])]
            generator.shuffle(drawn)
            rates |= dict(zip(layers, drawn, strict=True))
        if rates == derived.rates:
            continue
        network = with_rates(derived, rates)
        unmerged = _unmerged(network)
        bounds = dilation_bounds(unmerged)
        if field_of_view(unmerged) == wanted and all(rates[name] <= bounds[name] for name in names):
            return rates
    raise UserError(f"no other rates of the field of view {wanted} found in {TRIES} tries")


def _parts(total: int, count: int, generator: random.Random) -> list[int]:
    """``total`` as a sum of ``count`` numbers of at least 1, all such sums equally likely."""
    cuts = sorted(generator.sample(range(1, total), count - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def _unmerged(architecture: DilatedArchitecture) -> nn.Module:
    """The network with every layer by its own name."""
    network = network_by_name(architecture.network.name, 2, architecture.network.options)
    return set_rates(network, architecture.rates)


def train(
    architecture: DilatedArchitecture, space: RegSegSpace, data: DataConfig, out: Path, seed: int
) -> tuple[float, float]:
    """Train and return, on the test images, mIoU and accuracy in the top quarter of the best weights."""
    with RichProgress() as progress:
        run_retraining(
            {"architecture": to_mapping(architecture)},
            data,
            out,
            space.retrain,
            source=out.name,
            seed=seed,
            resume=True,
            device="cpu",
            progress=progress,
        )
    at_hand = network_at_hand(str(out))
    assert at_hand.augmentation is not None
    test = open_dataset(data, "test")
    return evaluate(at_hand.network, test, at_hand.augmentation).miou, top_accuracy(at_hand.network, data)


@torch.no_grad()
def top_accuracy(network: nn.Module, data: DataConfig) -> float:
    """Of the pixels of rectangles in the top quarter of the test images, the share that is labelled right."""
    right = count = 0
    loader = batches(
        open_dataset(data, "test"),
        eval_transform(load_space(PRESET).retrain.augmentation),
        batch_size=8,
        seed=0,
        epoch=0,
        shuffle=False,
        drop_last=False,
    )
    for images, labels in loader:
        top = labels.shape[1] // 4
        truth, found = labels[:, :top], network.eval()(images).argmax(1)[:, :top]
        inside = truth > 0
        right += int((found[inside] == truth[inside]).sum())
        count += int(inside.sum())
    return right / count


def table(results: dict[str, list[tuple[float, float, int]]]) -> list[str]:
    lines = ["| rates | field of view (pixels) | mIoU (%) | top quarter right (%) |", "|---|---|---|---|"]
    for name, rows in results.items():
        fields = ", ".join(str(row[2]) for row in rows)
        lines.append(f"| {name} | {fields} | {spread([r[0] for r in rows])} | {spread([r[1] for r in rows])} |")
    return lines


def spread(shares: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(shares):.1f}"
    return f"{mean} ± {100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else mean


if __name__ == "__main__":
    main()
