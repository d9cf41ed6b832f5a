"""Train hand-made networks by the recipe of a study, for comparison with its searches.

    python -m scripts.study.hand_made camvid --root CAMVID --work DIR

Rows go to docs/study/hand_made.jsonl. It can be stopped and started again at any time.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from dnas.config import to_mapping
from dnas.networks import network_by_name
from dnas.profile import count_parameters
from scripts.study.config import StudyConfig, add_options, load_study
from scripts.study.rows import HAND_MADE, read_rows
from scripts.study.training import Training, command, train_all


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    study = load_study(options.study)
    done = {(row["network"], row["seed"]) for row in read_rows(options.results / HAND_MADE, **study.keys)}
    wanted = [
        _training(study, name, seed)
        for seed in range(options.seeds)
        for name in study.hand_made
        if (name, seed) not in done
    ]
    train_all(wanted, study, options, options.results / HAND_MADE, jobs={})


def _training(study: StudyConfig, name: str, seed: int) -> Training:
    description: dict[str, Any] = to_mapping(study.hand_made[name])
    row = {
        **study.keys,
        "image_size": list(study.image_size),
        "network": name,
        "predicted_ms": None,
        "measured_ms": None,
        "description": description,
        "parameters": count_parameters(network_by_name(description["name"], 19, description["options"])),
    }
    job = re.sub(r"[^a-z0-9]+", "_", name.lower())
    return Training(f"{job}_seed{seed}", description["name"], seed, lambda: row, description["options"])


if __name__ == "__main__":
    command(main)
