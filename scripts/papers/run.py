"""Running the rows of a table, and printing them beside the paper's figures."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnas.config import apply_overrides, parse_config, to_mapping
from dnas.data import DataConfig, open_dataset
from dnas.device import resolve_device
from dnas.export import benchmark
from dnas.json_lines import append_record, read_lines
from dnas.networks import field_of_view, network_by_name, network_facts
from dnas.profile import count_multiply_adds, count_parameters
from dnas.progress import RichProgress
from dnas.training import RetrainConfig, evaluate
from dnas.training.recipes import load_recipe
from dnas.workflows.networks import load_network
from dnas.workflows.retraining import run_retraining
from scripts.papers.config import TOY_RECIPE, TRAINED, Column, Table

RESULTS = "results.jsonl"
_SPEED: tuple[Column, ...] = ("fps", "latency_ms")
UNITS: Mapping[Column, tuple[str, float]] = {
    "miou": ("mIoU (%)", 0.01),
    "reduced_miou": ("reduced mIoU (%)", 0.01),
    "pixel_accuracy": ("pixel accuracy (%)", 0.01),
    "fps": ("FPS", 1),
    "latency_ms": ("latency (ms)", 1),
    "parameters": ("parameters (M)", 1e6),
    "multiply_adds": ("multiply-adds (G)", 1e9),
    "field_of_view": ("field of view", 1),
}
"""Heading of each column, and what one of its unit is of the measured value."""


@dataclass(frozen=True)
class Experiment:
    """A table to run: where its results go, on which device, and whether at toy size, to see that it works."""

    table: Table
    out: Path
    data: DataConfig | None
    before: DataConfig | None = None
    """Images of the trainings that give others their initial weights."""
    device: str = "auto"
    precision: str = "fp32"
    toy: bool = False
    changes: tuple[str, ...] = ()

    def run(self, labels: Sequence[str], seeds: int) -> None:
        """Measure every row that has no result yet; an interrupted call is continued by the same call."""
        known = {(row["label"], row["seed"]) for row in self.results()}
        for label in labels:
            for seed in range(seeds if self.table.trains else 1):
                if (label, seed) not in known:
                    found = self._trained(label, seed) if self.table.trains else {}
                    append_record(self.out / RESULTS, {"label": label, "seed": seed, **found, **self._measured(label)})

    def results(self) -> list[dict[str, Any]]:
        """The rows measured so far."""
        return [line.record for line in read_lines(self.out / RESULTS, "the results") if line.record is not None]

    def _trained(self, label: str, seed: int) -> dict[str, Any]:
        """Train the network of a row, if no other row has, and score its best weights."""
        assert self.data is not None
        row = self.table.rows[self.table.rows[label].trained or label]
        folder = self.out / run_folder(self.table, label, seed)
        config = self.table.retraining(label, (*(TOY_RECIPE if self.toy else ()), *self.changes))
        init = None if self.toy and row.before is None else row.init
        if row.before is not None:
            init = str(self._trained_before(label, seed))
        self._train(label, self.data, folder, config, seed, init)
        row = self.table.rows[label]
        inference = row.inference
        if self.toy and inference.input_size is not None:
            inference = dataclasses.replace(inference, input_size=(64, 64))
        found = load_network(str(folder))
        dataset = open_dataset(self.data, self.table.split)
        scores = evaluate(
            found.network,
            dataset,
            config.augmentation,
            device=resolve_device(self.device),
            precision=config.precision,
            inference=inference,
        ).to_mapping()
        return {name: scores.get(name) for name in TRAINED}

    def _trained_before(self, label: str, seed: int) -> Path:
        """The run folder of the training whose weights the row begins with; it is trained if that is not done."""
        assert self.before is not None
        before = self.table.rows[self.table.rows[label].trained or label].before
        assert before is not None
        changes = [*(TOY_RECIPE if self.toy else ()), *self.changes]
        values = apply_overrides(to_mapping(load_recipe(before.recipe).retrain), changes)
        config = parse_config(RetrainConfig, values, before.recipe)
        folder = self.out / f"{run_folder(self.table, label, seed)}-{before.data}"
        self._train(label, self.before, folder, config, seed, None if self.toy else before.init)
        return folder

    def _train(
        self, label: str, data: DataConfig, folder: Path, config: RetrainConfig, seed: int, init: str | None
    ) -> None:
        with RichProgress() as progress:
            run_retraining(
                self.table.described(label),
                data,
                folder,
                config,
                source=f"{self.table.paper}, {label}",
                init=init,
                seed=seed,
                resume=folder.exists(),
                device=self.device,
                progress=progress,
            )

    def _measured(self, label: str) -> dict[str, Any]:
        """Size, cost, field of view and speed of the network of a row, as far as the table has them."""
        wanted, row = self.table.columns, self.table.rows[label]
        size = (64, 64) if self.toy else (row.size or self.table.size)
        description = self.table.described(label)
        found: dict[str, Any] = {}
        if {"parameters", "multiply_adds"} & set(wanted):
            with torch.device("meta"):
                network = network_by_name(description["name"], self.table.num_classes, description["options"])
            found["parameters"] = count_parameters(network)
            if "multiply_adds" in wanted:
                prices = network_facts(description["name"]).elementwise  # as the paper's counter has them
                found["multiply_adds"] = count_multiply_adds(network, size, elementwise=prices)
        if {"field_of_view", *_SPEED} & set(wanted):
            network = network_by_name(description["name"], self.table.num_classes, description["options"])
            if "field_of_view" in wanted:
                found["field_of_view"] = field_of_view(network)
            if set(_SPEED) & set(wanted):
                seconds = 0.02 if self.toy else 6.0
                speed = benchmark(network, size, device=self.device, precision=self.precision, seconds=seconds)
                found |= {"fps": speed["fps"], "latency_ms": speed["latency_ms"]["median"]}
        return found


def markdown(table: Table, results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table with measured figures, mean and standard deviation over the seeds, beside those of the paper."""
    yield f"{table.paper}: {table.title}"
    if table.note:
        yield f"\n{table.note}"
    heads = [text for column in table.columns for text in (UNITS[column][0], "paper")]
    yield f"\n| row | {' | '.join(heads)} |"
    yield f"|---|{'---|' * len(heads)}"
    for label, row in table.rows.items():
        rows = [found for found in results if found["label"] == label]
        cells = [
            text
            for column in table.columns
            for text in (_cell(column, [found.get(column) for found in rows]), row.printed.get(column, ""))
        ]
        yield f"| {label} | {' | '.join(cells)} |"


def _cell(column: Column, values: Sequence[float | None]) -> str:
    known = [value / UNITS[column][1] for value in values if value is not None]
    if not known:
        return ""
    digits = 0 if column == "field_of_view" else 2
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 and column in TRAINED else ""
    return f"{statistics.mean(known):.{digits}f}{spread}"


def run_folder(table: Table, label: str, seed: int) -> str:
    """The name of the run folder of a row: number and label of the row whose training it uses."""
    trained = table.rows[label].trained or label
    slug = re.sub(r"[^a-z0-9]+", "-", trained.lower()).strip("-")
    return f"{list(table.rows).index(trained) + 1:02d}-{slug}-seed{seed}"
