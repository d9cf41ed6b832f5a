"""Run the searches of a study and train what they derive, by the recipe of the random networks.

    python -m scripts.study.searches camvid --root CAMVID --work DIR [--methods estimator,gradient]

Rows go to docs/study/derived.jsonl. It can be stopped and started again at any time: DIR is the folder of a ``dnas
study`` with jobs for each search, derivation, training and evaluation.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from derive import TOLERANCE, Architecture
from derive.judging import key_of
from dnas.config import to_mapping
from dnas.files import dump_yaml, write_text
from dnas.workflows.study.graph import JOBS
from dnas.workflows.study.job import cpu_seconds, result_of
from scripts.study.config import Method, StudyConfig, add_options, load_study
from scripts.study.rows import DERIVED, read_rows
from scripts.study.training import Training, command, train_all, work_folder
from search_spaces import load_space


@dataclass(frozen=True)
class Search:
    """One search: ``target_ms`` is None for a method that derives for all targets from one search."""

    method: str
    seed: int
    target_ms: float | None

    @property
    def job(self) -> str:
        """The name of its job."""
        target = "" if self.target_ms is None else f"_{plain(f'{self.target_ms:g}')}ms"
        return f"search_{plain(self.method)}_seed{self.seed}{target}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--methods", type=lambda text: text.split(","), help="default: all of the study")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every search")
    options = parser.parse_args()
    study, results = load_study(options.study), options.results / DERIVED
    done = {(row["method"], row["search_seed"], row["target_ms"]) for row in read_rows(results, **study.keys)}
    work = work_folder(study, options)
    jobs: dict[str, Any] = {}
    trainings = []
    for search in planned(study, options.methods or list(study.methods), options.seeds):
        for target in study.targets_ms if search.target_ms is None else (search.target_ms,):
            if (search.method, search.seed, target) not in done:
                jobs |= search_jobs([search], study, study.methods[search.method], work)
                training = _training(study, search, target, work)
                jobs[f"derive_{training.name}"] = {
                    "command": f"derive ${search.job}",
                    "options": {"target": target, "device": "cpu"},
                }
                trainings.append(training)
    train_all(trainings, study, options, results, jobs)


def planned(study: StudyConfig, methods: list[str], seeds: int) -> Iterator[Search]:
    """The searches of the methods, seed by seed."""
    for seed in range(seeds):
        for method in methods:
            for target in study.targets_ms if study.methods[method].one_search_per_target else (None,):
                yield Search(method, seed, target)


def search_jobs(searches: Sequence[Search], study: StudyConfig, method: Method, work: Path) -> dict[str, Any]:
    """The jobs of searches with the settings of ``method``, whose spaces are written to ``work``."""
    jobs = {}
    for search in searches:
        values: dict[str, Any] = load_space(study.space).configuration()
        values |= {"search": method.search, "latency_target_ms": search.target_ms, "retrain": to_mapping(study.recipe)}
        values["network"] = {**values["network"], **method.network}
        write_text(work / "spaces" / f"{search.job}.yaml", dump_yaml(values))
        options = {"data": "$study/data.yaml", "table": "$study/table.json", "seed": search.seed, "device": "cpu"}
        options["allow-mismatch"] = True  # latencies are those of the study's table, whichever machine searches
        jobs[search.job] = {"command": f"search $study/spaces/{search.job}.yaml", "options": options}
    return jobs


def search_seconds(job: str, work: Path) -> float | None:
    """The processor time of a job in seconds; None if it is not known."""
    seconds = cpu_seconds(work / JOBS / job)
    return None if seconds is None else round(seconds, 1)


def _training(study: StudyConfig, search: Search, target_ms: float, work: Path) -> Training:
    name = f"{plain(search.method)}_seed{search.seed}_{plain(f'{target_ms:g}')}ms"

    def row() -> dict[str, Any]:
        folder = work / JOBS / f"derive_{name}"
        architecture, latency = Architecture.load(folder / "architecture.yaml"), result_of(folder)["latency_ms"]
        if abs(latency / target_ms - 1) > TOLERANCE:
            print(f"{name}: derived {latency:.3f} ms for the target {target_ms:g} ms")
        supernet = architecture.provenance.get("supernet_miou")
        return {
            **study.keys,
            "image_size": list(study.image_size),
            "network": key_of(architecture),
            "method": search.method,
            "search_seed": search.seed,
            "target_ms": target_ms,
            "predicted_ms": round(latency, 6),
            "measured_ms": None,
            "supernet_miou": None if supernet is None else float(supernet),
            "search_cpu_seconds": search_seconds(search.job, work),
            "derive_cpu_seconds": search_seconds(f"derive_{name}", work),
            "architecture": {**to_mapping(architecture), "provenance": {}},
        }

    return Training(name, f"$derive_{name}", search.seed, row)


def plain(text: str) -> str:
    """A text as a part of a job's name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text)


if __name__ == "__main__":
    command(main)
