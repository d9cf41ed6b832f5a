"""Run the searches of a study and train what they derive, by the recipe of the random networks.

    python -m scripts.study.searches camvid --root CAMVID --work DIR [--methods estimator,gradient]

Rows go to docs/study/derived.jsonl. It can be stopped and started again at any time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from derive import TOLERANCE, Derivation, DeriveOptions
from derive.judging import key_of
from dnas.config import to_mapping
from dnas.data import DataConfig
from dnas.files import read_json, write_json
from dnas.progress import RichProgress
from dnas.workflows.derivation import derive_network
from dnas.workflows.search import run_search
from scripts.study.config import StudyConfig, add_options, load_study
from scripts.study.rows import DERIVED, read_rows
from scripts.study.training import Training, one_thread, train_all
from search_spaces import load_space, space_from


@dataclass(frozen=True)
class Search:
    """One search: ``target_ms`` is None for a method that derives for all targets from one search."""

    method: str
    seed: int
    target_ms: float | None

    @property
    def name(self) -> str:
        """A name for its run folder."""
        return f"{self.method}-seed{self.seed}" + ("" if self.target_ms is None else f"-{self.target_ms:g}ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--methods", type=lambda text: text.split(","), help="default: all of the study")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every search")
    parser.add_argument("--searches-only", action="store_true", help="train no derived network")
    options = parser.parse_args()
    study = load_study(options.study)
    data = study.open_data(options.root)
    searches = list(planned(study, options.methods or list(study.methods), options.seeds))
    run_searches(searches, study, data, options.work / "searches", options.processes)
    if options.searches_only:
        return
    keys = {"space": study.space, "data": study.data, "recipe": study.recipe_key}
    rows = read_rows(options.results / DERIVED, **keys)
    done = {(row["method"], row["search_seed"], row["target_ms"]) for row in rows}
    trainings = [
        _training(study, search, target, options.work / "searches" / search.name)
        for search in searches
        for target in ([search.target_ms] if search.target_ms is not None else study.targets_ms)
        if (search.method, search.seed, target) not in done
    ]
    train_all(trainings, data, study.recipe, options.work / "trainings", options.results / DERIVED, options.processes)


def planned(study: StudyConfig, methods: list[str], seeds: int) -> Iterator[Search]:
    """The searches of the methods, seed by seed."""
    for seed in range(seeds):
        for method in methods:
            for target in study.targets_ms if study.methods[method].one_search_per_target else (None,):
                yield Search(method, seed, target)


def run_searches(searches: list[Search], study: StudyConfig, data: DataConfig, work: Path, processes: int) -> None:
    """Run or continue the searches, each in its folder."""
    waiting = [search for search in searches if not (work / f"{search.name}.json").exists()]
    context = multiprocessing.get_context("spawn")
    with (
        RichProgress() as progress,
        concurrent.futures.ProcessPoolExecutor(processes, mp_context=context, initializer=one_thread) as pool,
    ):
        progress.begin("searches", len(waiting))
        running = {pool.submit(_search, search, study, data, work): search for search in waiting}
        try:
            for future in concurrent.futures.as_completed(running):
                progress.message(f"{running[future].name}: {future.result():.0f} s")
                progress.advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _search(search: Search, study: StudyConfig, data: DataConfig, work: Path) -> float:
    """Run one search; returns its processor time in seconds, over all sittings."""
    values: dict[str, Any] = load_space(study.space).configuration()
    settings = study.methods[search.method]
    values = {**values, "search": settings.search, "latency_target_ms": search.target_ms}
    if settings.network:
        values["network"] = {**values["network"], **settings.network}
    started, out = time.process_time(), work / search.name
    clock = work / f"{search.name}.seconds"
    before = read_json(clock, "time of a search")["seconds"] if clock.exists() else 0.0
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        run_search(
            space_from(values, search.name),
            data,
            study.latency_table(),
            out,
            seed=search.seed,
            resume=out.exists(),
            device="cpu",
        )
    finally:
        seconds = before + time.process_time() - started
        write_json(clock, {"seconds": seconds})
    write_json(work / f"{search.name}.json", {"seconds": seconds})
    return float(seconds)


def _training(study: StudyConfig, search: Search, target_ms: float, run: Path) -> Training:
    derivation: Derivation = derive_network(run, DeriveOptions(target_ms=target_ms, device="cpu"))
    architecture, latency = derivation.architecture, derivation.latency_ms
    assert latency is not None
    if abs(latency / target_ms - 1) > TOLERANCE:
        print(f"{search.name}: derived {latency:.3f} ms for the target {target_ms:g} ms")
    described = to_mapping(architecture)
    supernet = architecture.provenance.get("supernet_miou")
    row = {
        "space": study.space,
        "data": study.data,
        "image_size": list(study.image_size),
        "recipe": study.recipe_key,
        "network": key_of(architecture),
        "method": search.method,
        "search_seed": search.seed,
        "target_ms": target_ms,
        "predicted_ms": round(latency, 6),
        "measured_ms": None,
        "supernet_miou": None if supernet is None else float(supernet),
        "search_cpu_seconds": round(read_json(run.with_name(f"{run.name}.json"), "time of a search")["seconds"], 1),
        "architecture": {**described, "provenance": {}},
    }
    name = f"{study.recipe_key}-{search.method}-seed{search.seed}-{target_ms:g}ms"
    return Training(name, {"architecture": described}, search.seed, row)


if __name__ == "__main__":
    main()
