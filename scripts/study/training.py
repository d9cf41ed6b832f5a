"""Jobs of a study of searches, run by ``dnas study``: on this machine, a Ray cluster or Slurm.

A training is two jobs: ``dnas retrain``, and ``dnas evaluate`` on the test images. Its row is appended to the results
when both are done.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnas.config import parse_config, to_mapping
from dnas.errors import Interrupted, UserError
from dnas.files import dump_yaml, write_text
from dnas.progress import Progress, RichProgress
from dnas.runs import RunFolder
from dnas.workflows.study.config import StudyConfig as JobGraph
from dnas.workflows.study.engines import find_engine
from dnas.workflows.study.graph import JOBS, Job
from dnas.workflows.study.job import cpu_seconds, is_done, result_of
from dnas.workflows.study.running import run_study
from scripts.study.config import StudyConfig
from scripts.study.rows import append_row
from search_spaces import load_space

Jobs = Mapping[str, Mapping[str, Any]]
"""Jobs by name, as in the file of ``dnas study``."""


@dataclass(frozen=True)
class Training:
    """A network to train.

    name: in the names of its jobs: letters, digits and underscores. network: as given to ``dnas retrain``; it may refer
    to other jobs. options: those of a network by name. row: what is known of the network; it is called after the
    training. training_options: further options of ``dnas retrain``.
    """

    name: str
    network: str
    seed: int
    row: Callable[[], Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    training_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        """Its two jobs."""
        common = {"data": "$study/data.yaml", "device": "cpu"}
        settings = {"recipe": "$study/recipe.yaml", "seed": self.seed, "scratch": True, "check": "none"}
        options = {"network-set": dict(self.options)} if self.options else {}
        return {
            f"train_{self.name}": {
                "command": f"retrain {self.network}",
                "options": {**common, **settings, **options, **self.training_options},
            },
            f"test_{self.name}": {
                "command": f"evaluate $train_{self.name}",
                "options": {**common, "split": "test", "batch-size": 8},
            },
        }

    def scores(self, work: Path) -> dict[str, Any]:
        """The results. A recipe validates once, at its end, so that no epoch is chosen."""
        folder = work / JOBS / f"train_{self.name}"
        run = RunFolder.open(folder, "retrain")
        epochs, seconds = run.records("epoch"), cpu_seconds(folder)
        return {
            "seed": self.seed,
            "val_miou": epochs[-1]["miou"],
            "test_miou": result_of(work / JOBS / f"test_{self.name}")["miou"],
            "epochs": len(epochs),
            "cpu_seconds": None if seconds is None else round(seconds, 1),
            "commit": run.environment["git_commit"],
            "torch": run.environment["torch"],
        }


def train_all(
    trainings: Sequence[Training], study: StudyConfig, options: argparse.Namespace, results: Path, jobs: Jobs
) -> None:
    """Run the trainings and ``jobs`` that they refer to, and append the row of each training to ``results``.

    ``options``: those of :func:`scripts.study.config.add_options`.
    """
    work = work_folder(study, options)
    by_last_job = {f"test_{training.name}": training for training in trainings}

    def finish(training: Training) -> str:
        row = {**training.row(), **training.scores(work)}
        append_row(results, row)
        scores = f"validation {100 * row['val_miou']:.1f} %, test {100 * row['test_miou']:.1f} %"
        return f"{row['network']} seed {row['seed']}: {scores}"

    # Their rows were not written, as the command was killed.
    done = {name for name in by_last_job if is_done(work / JOBS / name)}
    for name in sorted(done):
        print(finish(by_last_job[name]))
    waiting = [training for name, training in by_last_job.items() if name not in done]
    every = {**jobs, **{name: job for training in waiting for name, job in training.jobs.items()}}
    with RichProgress() as progress:

        def finished(job: Job) -> None:
            if job.name in by_last_job:
                progress.message(finish(by_last_job[job.name]))

        run_jobs(every, study, options, progress, finished)


def run_jobs(
    jobs: Jobs,
    study: StudyConfig,
    options: argparse.Namespace,
    progress: Progress,
    finished: Callable[[Job], None] | None = None,
) -> None:
    """Run jobs that may read ``$study/data.yaml``, ``$study/recipe.yaml`` and ``$study/table.json``, one core each."""
    if not jobs:
        return
    work = work_folder(study, options)
    space = {**load_space(study.space).configuration(), "retrain": to_mapping(study.recipe)}
    write_text(work / "data.yaml", dump_yaml(to_mapping(study.open_data(options.root))))
    write_text(work / "recipe.yaml", dump_yaml(space))
    study.latency_table().save(work / "table.json")
    run_study(
        parse_config(JobGraph, {"jobs": jobs}, "study"),
        work,
        engine=find_engine(options.on),
        progress=progress,
        finished=finished,
    )


def work_folder(study: StudyConfig, options: argparse.Namespace) -> Path:
    """The folder of the runs of a study with its recipe."""
    work: Path = options.work.resolve() / study.recipe_key
    return work


def command(main: Callable[[], None]) -> None:
    """Run a command; a mistake of the user or an interruption ends it with one line."""
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
    except Interrupted as stopped:
        print(stopped)
        raise SystemExit(130) from None
