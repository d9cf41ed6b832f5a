"""Timing the parts of the whole way for a moment, before it is planned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from derive import deriver_of
from dnas.data import SegmentationDataset, batches, train_transform
from dnas.input_channels import with_input_channels
from dnas.latency import Effort, LatencyTable, Measurement, make_setup
from dnas.latency.measure import Workbench, WorkItem
from dnas.latency.provenance import start_provenance
from dnas.search import BilevelProblem
from dnas.workflows.schedule import Costs
from search_spaces import SearchSpace

_READ = 4
_EFFORT = Effort(rounds=1, time_per_entry=0.05)


def measure_costs(
    space: SearchSpace[Any],
    images: SegmentationDataset,
    *,
    crop: tuple[int, int],
    batch: int,
    trained_on: torch.device,
    latencies_of: str,
    backend: str,
) -> Costs:
    """Time one of everything: an operator, reading an image, and a step of each training on ``trained_on``.

    ``crop`` (height, width) and ``batch`` are those of the search. ``latencies_of`` and ``backend``: device and runtime
    of the latency table. Raises :class:`UserError` for a runtime that is not there and for unusable images.
    """
    step, score, judge = seconds_per_step(space, crop, batch, trained_on)
    return Costs(
        entry=seconds_per_entry(space, latencies_of, backend),
        read=seconds_per_reading(space, images),
        image=seconds_per_image(space, trained_on),
        step=step,
        score=score,
        judge=judge,
    )


def seconds_per_entry(space: SearchSpace[Any], device: str, backend: str) -> float:
    """Time of preparing and measuring an operator of ``space``, after one that loads the libraries."""
    items = space.inventory()
    bench = Workbench(make_setup(device, backend=backend), 1 << 30)
    taken = []
    for index in (0, len(items) // 3, 2 * len(items) // 3):
        started = time.perf_counter()
        bench.visit(WorkItem(items[index].spec.key, items[index].spec.inputs, items[index].build), _EFFORT)
        taken.append(time.perf_counter() - started)
    return sum(taken[1:]) / len(taken[1:])


def seconds_per_reading(space: SearchSpace[Any], images: SegmentationDataset) -> float:
    """Time of reading and augmenting an image, in this process."""
    count = min(_READ, len(images))
    transform = train_transform(replace(space.retrain.augmentation, crop=space.input_size))
    started = time.perf_counter()
    for _ in batches(
        images, transform, batch_size=count, seed=0, epoch=0, shuffle=False, drop_last=False, indices=range(count)
    ):
        pass
    return (time.perf_counter() - started) / count


def seconds_per_image(space: SearchSpace[Any], device: torch.device) -> float:
    """Time of training a random network of ``space`` on one image of its input size: the best of two."""
    network = deriver_of(space).draw(1, 0)[0].build(space.num_classes)
    network = with_input_channels(network, space.channels).to(device).train()
    images = torch.zeros(2, space.channels, *space.input_size, device=device)

    def step() -> None:
        outputs = network(images)
        _backward(outputs[0] if isinstance(outputs, (tuple, list)) else outputs)

    return _best(step, device) / len(images)


def seconds_per_step(
    space: SearchSpace[Any], crop: tuple[int, int], batch: int, device: torch.device
) -> tuple[float, float, float]:
    """Times of a step of the search on ``batch`` images of ``crop``, of scoring an image in a validation, and of one of
    the networks that it scores; the best of two each.
    """
    problem = space.problem(_unit_table(space), 0)
    weights: nn.Module = with_input_channels(problem.weights, space.channels).to(device).train()
    problem.architecture.to(device)
    optimizer = torch.optim.SGD(weights.parameters(), lr=1e-6, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(batch, space.channels, *crop, device=device)
    image = torch.zeros(1, space.channels, *space.input_size, device=device)

    def step() -> None:
        passes = [*problem.weight_passes("search", generator)]
        passes += problem.architecture_passes(generator) if isinstance(problem, BilevelProblem) else []
        for forward in passes:
            _backward(_sum(problem.outputs(images, forward)))
        optimizer.step()
        optimizer.zero_grad()

    def score() -> None:
        with torch.no_grad():
            for forward in problem.validation_passes().values():
                problem.outputs(image, forward)

    taken = _best(step, device)
    weights.eval()
    scored = _best(score, device)
    return taken, scored, scored / max(1, len(problem.validation_passes()))


def _unit_table(space: SearchSpace[Any]) -> LatencyTable:
    """A table in which every operator takes 1 ms."""
    provenance = start_provenance(
        make_setup("cpu"), _EFFORT, space=space.name, input_size=space.input_size, command=None
    )
    return LatencyTable(provenance, {item.spec.key: Measurement(1.0, 1.0, 1.0, 1, 1) for item in space.inventory()})


def _sum(outputs: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([logits.float().square().mean() for logits in outputs.values()]).sum()


def _backward(outputs: Tensor) -> None:
    torch.autograd.backward(outputs.float().square().mean())


def _best(run: Callable[[], None], device: torch.device) -> float:
    best = math.inf
    for _ in range(2):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
