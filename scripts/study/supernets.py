"""How well the weights of one-shot searches rank the random networks of a study.

    python -m scripts.study.supernets camvid --root CAMVID --work DIR [--settings epochs-20,epochs-40]

Rows go to docs/study/supernets.jsonl, one for each setting and seed. It can be stopped and started again at any time.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from dnas.environment import describe_environment
from dnas.progress import RichProgress
from dnas.workflows.ranking import Correlation, correlation, rank_networks
from dnas.workflows.study.graph import JOBS
from scripts.study.analysis import means
from scripts.study.config import StudyConfig, add_options, load_study
from scripts.study.rows import RANDOM, SUPERNETS, append_row, read_rows
from scripts.study.searches import Search, search_jobs, search_seconds
from scripts.study.training import command, run_jobs, work_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--settings", type=lambda text: text.split(","), help="default: all of the study")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of every setting")
    options = parser.parse_args()
    study, results = load_study(options.study), options.results / SUPERNETS
    truth = means(read_rows(options.results / RANDOM, **study.keys), "val_miou", "test_miou")
    done = {
        (row["setting"], row["search_seed"])
        for row in read_rows(results, **study.keys)
        if row["networks"] == len(truth)
    }
    wanted = [
        Search(name, seed, None)
        for seed in range(options.seeds)
        for name in options.settings or list(study.supernets)
        if (name, seed) not in done
    ]
    work = work_folder(study, options)
    jobs: dict[str, Any] = {}
    for search in wanted:
        jobs |= search_jobs([search], study, study.supernets[search.method], work)
    with RichProgress() as progress:
        run_jobs(jobs, study, options, progress)
    for search in wanted:
        row = _rank(search, study, truth, work)
        append_row(results, row)
        print(f"{row['setting']} seed {row['search_seed']}: tau {row['tau']:.2f}, rho {row['rho']:.2f}")


def _rank(search: Search, study: StudyConfig, truth: list[dict[str, Any]], work: Path) -> dict[str, Any]:
    """Correlations of the mIoU with inherited weights on held-out training images and the mIoU on validation and test.

    The mean of validation and test mIoU is used because its noise is smaller; neither has chosen anything.
    """
    scores = [(row["val_miou"] + row["test_miou"]) / 2 for row in truth]
    rows = [
        {"architecture": row["architecture"], "predicted_ms": row["predicted_ms"], "val_miou": score}
        for row, score in zip(truth, scores, strict=True)
    ]
    with RichProgress() as progress:
        ranking = rank_networks(work / JOBS / search.job, rows, device="cpu", progress=progress)
    bands = {
        f"{target:g}": dataclasses.asdict(_band(ranking.points, target, study.band_tolerance))
        for target in study.targets_ms
    }
    latency = correlation([(ms, ms, miou) for ms, _, miou in ranking.points])
    return {
        **study.keys,
        "setting": search.method,
        "search_seed": search.seed,
        "search": study.supernets[search.method].search,
        "search_cpu_seconds": search_seconds(search.job, work),
        **dataclasses.asdict(ranking.overall),
        "bands": bands,
        "tau_of_latency": latency.tau,
        "commit": describe_environment("cpu")["git_commit"],
    }


def _band(points: Any, target_ms: float, tolerance: float) -> Correlation:
    return correlation([point for point in points if abs(point[0] / target_ms - 1) <= tolerance])


if __name__ == "__main__":
    command(main)
