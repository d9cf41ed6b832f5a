"""Train random networks of a space: the benchmark against which searches are measured.

    python -m scripts.study.random_networks camvid --root CAMVID --work DIR

It can be stopped and started again at any time: finished trainings are rows of docs/study/random.jsonl, unfinished ones
continue from their last epoch in DIR, which is the folder of a ``dnas study`` with one job for each training.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

from derive import Architecture, deriver_of
from derive.judging import key_of
from dnas.config import to_mapping
from dnas.files import dump_yaml, write_text
from scripts.study.config import StudyConfig, add_options, load_study
from scripts.study.rows import LENGTH, RANDOM, read_rows
from scripts.study.training import Training, command, train_all, work_folder
from search_spaces import load_space


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--limit", type=int, help="end after this many trainings")
    parser.add_argument(
        "--epochs", type=int, help=f"another length of the recipe, to compare with; rows go to {LENGTH}"
    )
    options = parser.parse_args()
    study, results = load_study(options.study), options.results / RANDOM
    if options.epochs is not None:
        recipe = dataclasses.replace(study.recipe, epochs=options.epochs, validate_every=options.epochs)
        study, results = dataclasses.replace(study, recipe=recipe), options.results / LENGTH
    done = {(row["network"], row["seed"]) for row in read_rows(results, **study.keys)}
    wanted = [one for one in trainings(study) if (one.row()["network"], one.seed) not in done]
    print(f"{len(done)} trainings are done, {len(wanted)} to do")
    for one in wanted[: options.limit]:
        write_text(work_folder(study, options) / "networks" / f"{one.name}.yaml", dump_yaml(one.row()["architecture"]))
    train_all(wanted[: options.limit], study, options, results, jobs={})


def networks(study: StudyConfig) -> list[tuple[Architecture, float]]:
    """The random networks of a study with their predicted latencies in ms, the same ones every time.

    Those around the targets and those spread over all latencies take turns, so that any first part is stratified.
    """
    deriver, table = deriver_of(load_space(study.space)), study.latency_table()
    low, high = 1 - study.tolerance, 1 + study.tolerance
    groups: list[list[Architecture]] = [
        deriver.random_architectures(study.networks_per_target, seed, (low * target, high * target), table)
        for seed, target in enumerate(study.targets_ms)
    ]
    spread = deriver.random_architectures(4 * study.spread_networks, len(groups)) if study.spread_networks else []
    spread.sort(key=lambda one: deriver.predict_ms(one, table))
    groups.append(spread[::4])
    found: dict[str, tuple[Architecture, float]] = {}
    for architecture in _in_turns(groups):
        found.setdefault(key_of(architecture), (architecture, deriver.predict_ms(architecture, table)))
    return list(found.values())


def trainings(study: StudyConfig) -> list[Training]:
    """All trainings of a study: each network once, then the repetitions."""
    found = networks(study)
    repeated = found[:: max(1, len(found) // study.repeated_networks)] if study.repeated_networks else []
    first = [_training(study, network, ms, 0) for network, ms in found]
    more = [
        _training(study, network, ms, seed)
        for seed in range(1, study.seeds)
        for network, ms in repeated[: study.repeated_networks]
    ]
    return first + more


def _training(study: StudyConfig, architecture: Architecture, predicted_ms: float, seed: int) -> Training:
    description: dict[str, Any] = to_mapping(architecture)
    row = {
        **study.keys,
        "image_size": list(study.image_size),
        "network": key_of(architecture),
        "predicted_ms": round(predicted_ms, 6),
        "measured_ms": None,
        "architecture": description,
    }
    name = f"{row['network']}_seed{seed}"
    return Training(name, f"$study/networks/{name}.yaml", seed, lambda: row)


def _in_turns(groups: list[list[Architecture]]) -> Iterator[Architecture]:
    longest = max(map(len, groups))
    for index in range(longest):
        for group in groups:
            # Spread the shorter groups over the length of the longest.
            start, end = (number * len(group) // longest for number in (index, index + 1))
            yield from group[start:end]


if __name__ == "__main__":
    command(main)
