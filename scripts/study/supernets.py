"""How well the weights of one-shot searches rank the random networks of a study.

    python -m scripts.study.supernets camvid --root CAMVID --work DIR [--settings epochs-20,epochs-40]

Rows go to docs/study/supernets.jsonl, one for each setting and seed. It can be stopped and started again at any time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
from pathlib import Path
from typing import Any

from dnas.environment import describe_environment
from dnas.files import read_json
from dnas.progress import RichProgress
from dnas.workflows.ranking import Correlation, correlation, rank_networks
from scripts.study.analysis import means
from scripts.study.config import StudyConfig, add_options, load_study
from scripts.study.rows import RANDOM, SUPERNETS, append_row, read_rows
from scripts.study.searches import Search, run_searches
from scripts.study.training import one_thread


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--settings", type=lambda text: text.split(","), help="default: all of the study")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of every setting")
    options = parser.parse_args()
    study = load_study(options.study)
    searches = [
        Search(name, seed, None) for seed in range(options.seeds) for name in options.settings or list(study.supernets)
    ]
    settings = dataclasses.replace(study, methods=study.supernets)
    work = options.work / "supernets"
    run_searches(searches, settings, study.open_data(options.root), work, options.processes)

    truth = read_rows(options.results / RANDOM, space=study.space, data=study.data, recipe=study.recipe_key)
    truth = means(truth, "val_miou", "test_miou")
    done = {
        (row["setting"], row["search_seed"])
        for row in read_rows(options.results / SUPERNETS, space=study.space, data=study.data, recipe=study.recipe_key)
        if row["networks"] == len(truth)
    }
    wanted = [search for search in searches if (search.method, search.seed) not in done]
    context = multiprocessing.get_context("spawn")
    with (
        RichProgress() as progress,
        concurrent.futures.ProcessPoolExecutor(options.processes, mp_context=context, initializer=one_thread) as pool,
    ):
        progress.begin("supernets", len(wanted))
        running = [pool.submit(_rank, search, study, truth, work / search.name) for search in wanted]
        for future in concurrent.futures.as_completed(running):
            row = future.result()
            append_row(options.results / SUPERNETS, row)
            progress.message(f"{row['setting']} seed {row['search_seed']}: tau {row['tau']:.2f}, rho {row['rho']:.2f}")
            progress.advance()


def _rank(search: Search, study: StudyConfig, truth: list[dict[str, Any]], run: Path) -> dict[str, Any]:
    """Correlations of the mIoU with inherited weights on held-out training images and the mIoU on validation and test.

    The mean of validation and test mIoU is used because its noise is smaller; neither has chosen anything.
    """
    rows = [{**row, "val_miou": (row["val_miou"] + row["test_miou"]) / 2} for row in truth]
    ranking = rank_networks(run, rows, device="cpu")
    bands = {
        f"{target:g}": dataclasses.asdict(_band(ranking.points, target, study.band_tolerance))
        for target in study.targets_ms
    }
    latency = correlation([(ms, ms, miou) for ms, _, miou in ranking.points])
    return {
        "space": study.space,
        "data": study.data,
        "recipe": study.recipe_key,
        "setting": search.method,
        "search_seed": search.seed,
        "search": study.supernets[search.method].search,
        "search_cpu_seconds": round(read_json(run.with_name(f"{run.name}.json"), "time of a search")["seconds"], 1),
        **dataclasses.asdict(ranking.overall),
        "bands": bands,
        "tau_of_latency": latency.tau,
        "commit": describe_environment("cpu")["git_commit"],
    }


def _band(points: Any, target_ms: float, tolerance: float) -> Correlation:
    return correlation([point for point in points if abs(point[0] / target_ms - 1) <= tolerance])


if __name__ == "__main__":
    main()
