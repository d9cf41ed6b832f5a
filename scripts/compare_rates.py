"""Comparison of searched dilation rates with all rates 1 and with random rates, retrained with equal settings.

For each seed: search from all rates 1, derive integer rates, and train networks with the same layers and initial
weights from scratch: with the derived rates, with all rates 1, and with random rates of the same field of view, some
without gaps (Eq. 3 of RegSeg v3) and some with gaps. Each training is a row of docs/study/rates.jsonl: its mIoU on the
test images and, for `rectangles`, whose classes are visible only at their feet, the fraction of correctly labelled
rectangle pixels in the top quarter of the image. ``NAME`` names the comparison, whose table ``python -m
scripts.study.tables`` writes. The runs are a study (`dnas study status DIR`, `dnas report DIR`): finished ones are
reused, and as many run at a time as the machine has cores.

    python -m scripts.compare_rates NAME --out DIR [--seeds 3] [--draws 1] [--size 256 256]
    python -m scripts.compare_rates NAME --out DIR --preset regseg_camvid_small --data camvid:FOLDER

With ``--rf-next`` there is one more network: the rates that RF-Next's hook finds in as many epochs
(scripts/rf_next.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from derive import Architecture, DilatedArchitecture, architecture_from
from derive.dilated import BaseNetwork
from derive.dilated import with_rates as set_rates
from dnas.config import parse_config, to_mapping
from dnas.data import AugmentationConfig, DataConfig, batches, eval_transform, load_data_config, open_dataset
from dnas.data.config import BUILT_IN
from dnas.data.rectangles import top_quarter
from dnas.data.seeding import mix_seed
from dnas.environment import describe_environment
from dnas.errors import UserError
from dnas.files import dump_yaml, write_text
from dnas.networks import dilation_bounds, field_of_view, network_by_name
from dnas.progress import RichProgress
from dnas.training import evaluate
from dnas.workflows.networks import load_network
from dnas.workflows.study.config import StudyConfig
from dnas.workflows.study.graph import JOBS
from dnas.workflows.study.job import is_done
from dnas.workflows.study.running import run_study
from scripts.rf_next import local_search
from scripts.study.rows import RATES, RESULTS, append_row, read_rows
from scripts.study.training import command
from search_spaces import load_space
from search_spaces.regseg import RegSegSpace

Key = tuple[str, int, int]
"""Of a training: kind of rates, draw, and seed."""

TRIES = 100_000
BUILT_IN_IMAGES = ("images.train=200", "images.val=40", "images.test=40")


def main() -> None:
    options = parse_arguments()
    space = load_space(options.preset, settings(options))
    if not isinstance(space, RegSegSpace):
        raise UserError(f"{options.preset}: not a search of dilation rates")
    height, width = space.input_size
    built_in = BUILT_IN_IMAGES if options.data in BUILT_IN else ()
    data = load_data_config(options.data, [f"size=[{height}, {width}]", "cache=true", *built_in])
    results = options.results / RATES
    place = {"comparison": options.name, "data": data.dataset, "image_size": [height, width]}
    place["settings"] = digest(space, data)
    rows = read_rows(results, comparison=options.name)
    if any(row["settings"] != place["settings"] for row in rows):
        raise UserError(f"{results}: '{options.name}' was compared with other settings; give another name")
    done = {(row["rates"], row["draw"], row["seed"]): row["architecture"] for row in rows}

    def finished(key: Key, run: Path) -> str:
        rates, draw, seed = key
        row = {**place, "rates": rates, "draw": draw, "seed": seed, **score_of(run, data)}
        append_row(results, row)
        top = "" if row["top_quarter"] is None else f", top quarter {100 * row['top_quarter']:.1f} %"
        return f"seed {seed}, {rates} {draw}: mIoU {100 * row['test_miou']:.1f} %{top}"

    train_all(space, data, options, done, finished)


def digest(space: RegSegSpace, data: DataConfig) -> str:
    """A digest of the search, of the trainings and of the images, but for the folder in which these lie."""
    images = {"dataset": data.dataset, "size": data.size, "images": data.images}
    values = json.dumps([space.configuration(), images], sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()[:6]


def settings(options: argparse.Namespace) -> list[str]:
    """The options as overrides of the preset."""
    chosen = {
        "task.input_size": options.size,
        "search.epochs": options.search_epochs,
        "search.architecture_learning_rate": options.rate_learning_rate,
        "retrain.epochs": options.retrain_epochs,
    }
    return [*(f"{key}={value}" for key, value in chosen.items() if value is not None), *options.set]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", help="name of the comparison, such as rectangles")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--preset", default="regseg_rectangles", help="search space")
    parser.add_argument("--data", default="rectangles", help="dataset, such as camvid:FOLDER")
    parser.add_argument("--size", type=int, nargs=2, help="height and width of the images; default: the preset's")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=1, help="networks of random rates of each kind for each seed")
    parser.add_argument("--rf-next", action="store_true", help="compare with RF-Next's local search, too")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the preset")
    parser.add_argument("--search-epochs", type=int, help="default: the preset's")
    parser.add_argument("--retrain-epochs", type=int, help="default: the preset's")
    parser.add_argument("--rate-learning-rate", type=float, help="default: the preset's")
    return parser.parse_args()


def train_all(
    space: RegSegSpace,
    data: DataConfig,
    options: argparse.Namespace,
    done: Mapping[Key, Mapping[str, Any]],
    finished: Callable[[Key, Path], str],
) -> None:
    """Run all trainings: a study of searches, to which trainings are added.

    Trainings in ``done`` are left out, and so are searches whose derived architecture it has. ``finished`` is called
    with the run folder of each training that is done, and returns a line to print.
    """
    out, seeds = options.out, range(options.seeds)
    for name, values in (("space", space.configuration()), ("data", to_mapping(data))):
        path, text = out / f"{name}.yaml", dump_yaml(values)
        if path.exists() and path.read_text() != text:
            raise UserError(f"{out}: holds runs with another {path.name}; give another folder")
        write_text(path, text)
    common = {"data": "$study/data.yaml", "seed": "$seed", "device": "cpu"}
    searched = [seed for seed in seeds if ("derived", 0, seed) not in done]
    study: dict[str, Any] = {"jobs": {}}
    if searched:
        study["vary"] = {"seed": searched}
        study["jobs"]["search"] = {"command": "search $study/space.yaml", "options": common}
        study["jobs"]["derived"] = {"command": "derive $search", "options": {"device": "cpu"}}
    found: dict[str, Key] = {}
    with RichProgress() as progress:
        if searched:
            run_study(parse_config(StudyConfig, study, "study"), out, progress=progress)
        for seed in seeds:
            if seed in searched:
                derived = Architecture.load(out / JOBS / f"derived-seed={seed}" / "architecture.yaml")
            else:
                derived = architecture_from(done["derived", 0, seed], f"{options.results / RATES}: seed {seed}")
            assert isinstance(derived, DilatedArchitecture)
            compared = architectures(space, derived, seed, options.draws)
            peer = out / f"rf_next_0_seed{seed}.yaml"
            if options.rf_next and ("rf_next", 0, seed) not in done and not peer.exists():
                progress.message(f"seed {seed}: RF-Next's local search")
                by_rf_next(space, data, derived, seed).save(peer)
            for (rates, draw), architecture in compared.items():
                architecture.save(out / f"{rates}_{draw}_seed{seed}.yaml")
            for rates, draw in [*compared, *([("rf_next", 0)] if options.rf_next else [])]:
                if (rates, draw, seed) in done:
                    continue
                name = f"{rates}_{draw}_seed{seed}"
                training = {**common, "seed": seed, "recipe": "$study/space.yaml"}
                study["jobs"][name] = {"command": f"retrain $study/{name}.yaml", "options": training}
                found[name] = (rates, draw, seed)
        if not found:
            return

        def report(name: str) -> None:
            if name in found:
                progress.message(finished(found[name], out / JOBS / name))

        for name in found:
            if is_done(out / JOBS / name):  # its row was not written, as the command was killed
                report(name)
        run_study(
            parse_config(StudyConfig, study, "study"), out, progress=progress, finished=lambda job: report(job.name)
        )


def architectures(
    space: RegSegSpace, derived: DilatedArchitecture, seed: int, draws: int
) -> dict[tuple[str, int], DilatedArchitecture]:
    """The networks to compare by rates and draw: derived, all rates 1, and random rates with the derived field of view.

    No random rate exceeds the largest one of the search. All networks differ; where fewer of a kind have that field of
    view than ``draws``, there are fewer.
    """
    upper = space.settings.rates.upper or math.inf
    found = {("derived", 0): derived, ("ones", 0): with_rates(derived, dict.fromkeys(derived.rates, 1))}
    for draw in range(draws):
        for name, gaps in (("random", False), ("random_with_gaps", True)):
            known = [one.rates for one in found.values()]
            rates = random_rates(derived, known, seed, draw, upper, gaps=gaps)
            if rates is not None:
                found[name, draw] = with_rates(derived, rates)
    return found


def by_rf_next(space: RegSegSpace, data: DataConfig, derived: DilatedArchitecture, seed: int) -> DilatedArchitecture:
    """The rates of RF-Next's search of the same layers from rates of 1, on the same images for as many epochs."""
    torch.manual_seed(mix_seed("weights", seed))
    network = _unmerged(with_rates(derived, dict.fromkeys(derived.rates, 1)), space.num_classes)
    largest = int(space.settings.rates.upper or 64)
    images = open_dataset(data, "train")
    return with_rates(
        derived, local_search(network, list(derived.rates), images, space.search, largest=largest, seed=seed)
    )


def with_rates(architecture: DilatedArchitecture, rates: dict[str, int]) -> DilatedArchitecture:
    network = BaseNetwork(name=architecture.network.name, options=architecture.network.options)
    return DilatedArchitecture(network=network, rates=rates, num_classes=architecture.num_classes)


def random_rates(
    derived: DilatedArchitecture,
    known: Collection[Mapping[str, int]],
    seed: int,
    draw: int,
    upper: float,
    *,
    gaps: bool,
) -> dict[str, int] | None:
    """Random rates by rejection sampling with the derived field of view; any branch may have a block's largest rate.

    With ``gaps`` at least one rate exceeds the bound k / s of the preceding layers (Eq. 3), without none does.
    None if no such rates were found, other than the ``known`` ones.
    """
    generator = random.Random(mix_seed("random rates", seed, draw, *(["gaps"] if gaps else [])))
    names = list(derived.rates)
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(name.rpartition(".")[0], []).append(name)
    # The field of view of consecutive blocks grows linearly with each block's largest rate.
    total = sum(max(derived.rates[name] for name in layers) for layers in blocks.values())
    ones, twos = (field_of_view(_unmerged(with_rates(derived, dict.fromkeys(names, rate)))) for rate in (1, 2))
    growth = (twos - ones) // len(blocks)
    stem = ones - growth * len(blocks)
    for _ in range(TRIES):
        largest = _parts(total, len(blocks), generator)
        before = [stem + growth * sum(largest[:index]) for index in range(len(largest))]
        # k / s, where s is half the growth of the field per unit of the rate of a 3x3 convolution.
        has_gaps = any(rate > 2 * view / growth for rate, view in zip(largest, before, strict=True))
        if has_gaps != gaps or max(largest) > upper:
            continue
        rates: dict[str, int] = {}
        for layers, rate in zip(blocks.values(), largest, strict=True):
            block_rates = [rate, *(generator.randint(1, rate) for _ in layers[1:])]
            generator.shuffle(block_rates)
            rates |= dict(zip(layers, block_rates, strict=True))
        if rates not in known:
            _check(derived, rates, gaps=gaps)
            return rates
    return None


def _check(derived: DilatedArchitecture, rates: dict[str, int], *, gaps: bool) -> None:
    """Check field of view and gaps of the random rates on the network itself."""
    network = _unmerged(with_rates(derived, rates))
    bounds = dilation_bounds(network)
    assert field_of_view(network) == derived.field_of_view()
    assert any(rates[name] > bounds[name] for name in rates) == gaps


def _parts(total: int, count: int, generator: random.Random) -> list[int]:
    """A random composition of ``total`` into ``count`` positive integers, all equally likely."""
    cuts = sorted(generator.sample(range(1, total), count - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def _unmerged(architecture: DilatedArchitecture, classes: int = 2) -> nn.Module:
    """The network with the given rates, without merging branches of equal rates."""
    network = network_by_name(architecture.network.name, classes, architecture.network.options)
    return set_rates(network, architecture.rates)


def score_of(run: Path, data: DataConfig) -> dict[str, Any]:
    """The keys of a row that say what a training gave: its best weights, on the test images."""
    loaded = load_network(str(run))
    assert loaded.augmentation is not None
    test = open_dataset(data, "test")
    top = top_accuracy(loaded.network, data, loaded.augmentation) if data.dataset == "rectangles" else None
    assert loaded.run is not None
    architecture = architecture_from(loaded.run.configuration["network"]["architecture"], str(run))
    assert isinstance(architecture, DilatedArchitecture)
    environment = describe_environment("cpu")
    return {
        "architecture": {**to_mapping(architecture), "provenance": {}},
        "field_of_view": architecture.field_of_view(),
        "test_miou": evaluate(loaded.network, test, loaded.augmentation).miou,
        "top_quarter": top,
        "commit": environment["git_commit"],
        "torch": environment["torch"],
    }


@torch.no_grad()
def top_accuracy(network: nn.Module, data: DataConfig, augmentation: AugmentationConfig) -> float:
    """The fraction of correctly labelled rectangle pixels in the top quarter of the test images."""
    correct = count = 0
    loader = batches(
        open_dataset(data, "test"),
        eval_transform(augmentation),
        batch_size=8,
        seed=0,
        epoch=0,
        shuffle=False,
        drop_last=False,
    )
    for images, labels in loader:
        batch_correct, batch_count = top_quarter(network.eval()(images).argmax(1), labels)
        correct, count = correct + batch_correct, count + batch_count
    return correct / count


if __name__ == "__main__":
    command(main)
