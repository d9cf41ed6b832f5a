"""Trainings in parallel processes, one thread each, that continue where they were stopped."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnas.data import DataConfig, open_dataset
from dnas.environment import describe_environment
from dnas.progress import RichProgress
from dnas.training import RetrainConfig
from dnas.training.metrics import evaluate
from dnas.workflows.networks import load_network
from dnas.workflows.retraining import run_retraining
from scripts.study.rows import append_row


@dataclass(frozen=True)
class Training:
    """A network to train.

    name: names its run folder. network: as in the configuration of a retraining. row: what is known of it already.
    """

    name: str
    network: Mapping[str, Any]
    seed: int
    row: Mapping[str, Any]


def train_all(
    trainings: Sequence[Training], data: DataConfig, recipe: RetrainConfig, work: Path, results: Path, processes: int
) -> None:
    """Run the trainings and append the row of each to ``results`` when it ends; run folders are in ``work``."""
    if not trainings:
        return
    context = multiprocessing.get_context("spawn")
    with (
        RichProgress() as progress,
        concurrent.futures.ProcessPoolExecutor(processes, mp_context=context, initializer=one_thread) as pool,
    ):
        progress.begin("trainings", len(trainings))
        running = {pool.submit(_train, one, data, recipe, work / one.name): one for one in trainings}
        try:
            for number, future in enumerate(concurrent.futures.as_completed(running), start=1):
                row = future.result()
                append_row(results, row)
                shutil.rmtree(work / running[future].name)
                progress.advance()
                scores = f"validation {100 * row['val_miou']:.1f} %, test {100 * row['test_miou']:.1f} %"
                progress.message(f"{number}/{len(trainings)} {row['network']} seed {row['seed']}: {scores}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def one_thread() -> None:
    """Let this process compute with one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def _train(training: Training, data: DataConfig, recipe: RetrainConfig, out: Path) -> dict[str, Any]:
    """Train one network and score its last weights on the validation and the test images."""
    started = time.process_time()
    resumed = out.exists()
    run_retraining(
        training.network,
        data,
        out,
        recipe,
        source=training.name,
        seed=training.seed,
        resume=resumed,
        device="cpu",
    )
    found = load_network(str(out))
    scores = {
        f"{split}_miou": evaluate(
            found.network, open_dataset(data, split), recipe.augmentation, batch_size=recipe.validation_batch_size
        ).miou
        for split in ("val", "test")
    }
    facts = describe_environment("cpu")
    return {
        **training.row,
        "seed": training.seed,
        **scores,
        "epochs": recipe.epochs,
        "cpu_seconds": None if resumed else round(time.process_time() - started, 1),
        "commit": facts["git_commit"],
        "torch": facts["torch"],
    }
