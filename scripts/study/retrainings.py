"""Compare ways to train derived networks: inherited weights, and distillation by the search's teacher.

    python -m scripts.study.retrainings camvid --root CAMVID --work DIR

Rows go to docs/study/retrainings.jsonl. It can be stopped and started again at any time.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from derive import Architecture
from derive.judging import key_of
from dnas.config import to_mapping
from dnas.errors import UserError
from dnas.workflows.study.graph import JOBS
from scripts.study.config import Retraining, RetrainingsConfig, StudyConfig, add_options, load_study
from scripts.study.rows import RETRAININGS, read_rows
from scripts.study.searches import Search, plain, search_jobs
from scripts.study.training import Training, command, train_all, work_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the search and of every training")
    options = parser.parse_args()
    study = load_study(options.study)
    wanted = study.retrainings
    if wanted is None:
        raise UserError(f"{options.study}: the study compares no ways to train (retrainings)")
    rows = read_rows(options.results / RETRAININGS, **study.keys)
    done = {(row["way"], row["epochs"], row["seed"]) for row in rows}
    work = work_folder(study, options)
    jobs: dict[str, Any] = {}
    trainings = []
    for seed in range(options.seeds):
        for name, way in wanted.ways.items():
            for epochs in way.epochs:
                if (name, epochs, seed) not in done:
                    jobs |= search_jobs([_search(wanted, seed)], study, study.methods[wanted.method], work)
                    jobs |= _networks(study, wanted, seed)
                    trainings.append(_training(study, options, name, way, epochs, seed))
    train_all(trainings, study, options, options.results / RETRAININGS, jobs)


def _search(wanted: RetrainingsConfig, seed: int) -> Search:
    return Search(wanted.method, seed, None)


def _networks(study: StudyConfig, wanted: RetrainingsConfig, seed: int) -> Mapping[str, Any]:
    """The student and the trained teacher of a search."""
    search = _search(wanted, seed).job
    teacher = Training(f"teacher_seed{seed}", f"$derive_teacher_seed{seed}", seed, dict)
    training = teacher.jobs[f"train_{teacher.name}"]
    training["options"] |= {"set": {"epochs": wanted.teacher_epochs, "validate_every": wanted.teacher_epochs}}
    return {
        f"derive_student_seed{seed}": {
            "command": f"derive ${search}",
            "options": {"target": wanted.target_ms, "device": "cpu"},
        },
        f"derive_teacher_seed{seed}": {
            "command": f"derive ${search}",
            "options": {"which": "teacher", "device": "cpu"},
        },
        f"train_{teacher.name}": training,
    }


def _training(
    study: StudyConfig, options: argparse.Namespace, name: str, way: Retraining, epochs: int, seed: int
) -> Training:
    work = work_folder(study, options)

    def row() -> dict[str, Any]:
        architecture = Architecture.load(work / JOBS / f"derive_student_seed{seed}" / "architecture.yaml")
        network = key_of(architecture)
        path = options.results / RETRAININGS
        known = {row["network"] for row in read_rows(path, **study.keys) if row["seed"] == seed}
        if known - {network}:
            raise UserError(
                f"{path}: seed {seed} has rows of the network {', '.join(known)}, this search derived {network}, as "
                "rounding differs between machines: remove these rows, or go on where they were made"
            )
        return {
            **study.keys,
            "image_size": list(study.image_size),
            "network": network,
            "way": name,
            "settings": to_mapping(way),
        }

    given = {**way.options, **({"teacher": f"$train_teacher_seed{seed}"} if way.teacher else {})}
    given["set"] = {**way.recipe, "epochs": epochs, "validate_every": epochs}
    return Training(
        f"{plain(name)}_{epochs}_epochs_seed{seed}", f"$derive_student_seed{seed}", seed, row, training_options=given
    )


if __name__ == "__main__":
    command(main)
