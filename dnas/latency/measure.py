"""Measuring modules: one at given inputs, or a list in interleaved rounds."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import nn

from dnas.errors import UserError
from dnas.latency.backends import find_backend, place, place_owned, random_inputs
from dnas.latency.device import NO_NVML, conditions, throttle_probe
from dnas.latency.pace import Pace, within_budget
from dnas.latency.setup import MeasurementSetup, make_setup, pinned
from dnas.latency.statistics import (
    Effort,
    Measurement,
    Round,
    Run,
    Stopwatch,
    run_rounds,
    summarise,
    time_round,
    warm_up,
)
from dnas.progress import NoProgress, Progress

WAKE_UP_S = 0.25
"""Seconds of work that bring an idle GPU to its clocks."""


@dataclass(frozen=True)
class WorkItem:
    """A module to be measured: its name, (channels, height, width) of each input, and a function that builds it."""

    name: str
    shapes: tuple[tuple[int, int, int], ...]
    build: Callable[[], nn.Module]


def measure(
    module: nn.Module,
    inputs: Sequence[torch.Tensor],
    *,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    precision: str = "fp32",
    channels_last: bool = False,
    threads: int | None = None,
    cache: str = "warm",
    effort: Effort | None = None,
    measured: Callable[[], None] | None = None,
) -> Measurement:
    """The latency in ms of ``module(*inputs)`` in eval mode, without gradients.

    The settings are those of :func:`dnas.latency.make_setup`. Module and inputs are copied and not changed.
    ``measured`` is called at the end, while the memory is still in use. Raises :class:`UserError` for a device, backend
    or precision that is unknown or not available.
    """
    effort = effort or Effort()
    setup = make_setup(
        device, backend=backend, precision=precision, channels_last=channels_last, threads=threads, cache=cache
    )
    runner = find_backend(setup)
    with pinned(setup):
        moved, tensors = place(module, inputs, setup)
        run = runner.prepare(moved, tensors, setup)
        stopwatch, throttled = setup.stopwatch(), throttle_probe(setup.device)
        rounds = run_rounds(["module"], lambda _: _quiet_round(stopwatch, run, effort, throttled), effort)
        if measured is not None:
            measured()
    return summarise(rounds["module"], effort)


def measure_many(
    items: Sequence[WorkItem],
    setup: MeasurementSetup,
    *,
    effort: Effort | None = None,
    seed: int = 0,
    budget_s: float | None = None,
    done: Mapping[str, Sequence[Round]] | None = None,
    finished: Callable[[str, Round], None] | None = None,
    progress: Progress | None = None,
    cache_bytes: int = 1 << 30,
) -> dict[str, Measurement]:
    """The latency in ms of every item, by name, in interleaved rounds over the shuffled list.

    ``budget_s`` limits the seconds: every item is measured at least coarsely, even if that alone takes longer; then
    those with the largest spread are refined until the time is up. ``done`` and ``finished`` serve a journal: rounds of
    earlier sessions, and a function that receives each round as soon as it is measured. Modules and inputs stay in
    memory between their rounds as long as they fit into ``cache_bytes`` and are rebuilt otherwise. ``progress`` is
    updated after each round; its bar is begun by the caller. Raises :class:`UserError` that names the item if one does
    not fit into the device's memory.
    """
    by_name = {item.name: item for item in items}
    if len(by_name) != len(items):
        raise UserError("the list of modules to measure has a name twice; give every module its own name")
    effort, progress = effort or Effort(), progress or NoProgress()
    per_round = effort if budget_s is None else within_budget(effort, budget_s, len(items))
    pace = Pace(list(by_name), effort, done=done, budget_s=budget_s)

    def note(name: str, entry: Round) -> None:
        if finished is not None:
            finished(name, entry)
        pace.finished(name, entry)
        progress.update(pace.done, pace.total, item=name, left_s=pace.left_s)

    with pinned(setup):
        bench = Workbench(setup, cache_bytes)
        rounds = run_rounds(
            list(by_name),
            lambda name: bench.visit(by_name[name], per_round),
            effort,
            seed=seed,
            done=done,
            finished=note,
            out_of_time=pace.out_of_time if budget_s is not None else None,
        )
    _warn(rounds, setup, progress)
    return {name: summarise(found, effort) for name, found in rounds.items()}


def _warn(rounds: Mapping[str, Sequence[Round]], setup: MeasurementSetup, progress: Progress) -> None:
    """Say what makes latencies on a GPU doubtful."""
    slow = [name for name, found in rounds.items() if any(entry.host_bound for entry in found)]
    if slow:
        progress.message(
            f"warning: {len(slow)} of {len(rounds)} modules take the host as long to enqueue as {setup.device} to run "
            f"({slow[0]}, for example): their latencies are those of the host; use --backend cudagraph"
        )
    if conditions(setup.device).get("throttle_reasons") == NO_NVML:
        progress.message(
            'warning: throttled clocks cannot be recognised without NVML; install it with: pip install "dnas[nvml]"'
        )


class Workbench:
    """Prepares modules to run with one setup, keeps the recently used ones in memory, and times their rounds."""

    def __init__(self, setup: MeasurementSetup, cache_bytes: int) -> None:
        self._setup = setup
        self._backend = find_backend(setup)
        self._stopwatch = setup.stopwatch()
        self._throttled = throttle_probe(setup.device)
        self._cache_bytes = cache_bytes
        self._ready: OrderedDict[str, _Ready] = OrderedDict()
        self._inputs: WeakValueDictionary[tuple[tuple[int, int, int], ...], _Inputs] = WeakValueDictionary()

    def visit(self, item: WorkItem, effort: Effort) -> Round:
        """One round of ``item``; its module is built first unless it is still in memory."""
        try:
            ready = self._ready.pop(item.name, None)
            if ready is None:
                ready = self._prepare(item)
                if self._setup.device.type == "cuda":
                    # While the module was built the GPU was idle and lowered its clocks.
                    warm_up(self._stopwatch, ready.run, WAKE_UP_S)
            self._ready[item.name] = ready
            self._evict()
            return _quiet_round(self._stopwatch, ready.run, effort, self._throttled)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[0][:300]
            raise UserError(
                f"{item.name}: does not fit into the memory of {self._setup.device} ({reason}); use a smaller input"
            ) from None

    @property
    def held_bytes(self) -> int:
        """Bytes of the modules and inputs in memory."""
        return sum(ready.own_bytes for ready in self._ready.values()) + sum(map(_total_bytes, self._inputs.values()))

    def _prepare(self, item: WorkItem) -> _Ready:
        inputs = self._inputs.get(item.shapes)
        if inputs is None:
            inputs = _Inputs(random_inputs(item.shapes, self._setup))
            self._inputs[item.shapes] = inputs
        module = place_owned(item.build(), self._setup)
        own_bytes = _total_bytes((*module.parameters(), *module.buffers()))
        if self._setup.backend != "eager":  # compiled modules and graphs keep buffers for their activations
            own_bytes += 2 * _total_bytes(inputs)
        return _Ready(self._backend.prepare(module, inputs, self._setup), inputs, own_bytes)

    def _evict(self) -> None:
        """Drop the least recently used modules until the rest fits; the newest one always stays."""
        while len(self._ready) > 1 and self.held_bytes > self._cache_bytes:
            self._ready.popitem(last=False)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is exhausted: PyTorch's own, or that of another runtime by its text."""
    if isinstance(error, UserError):
        return False
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "failed to allocate memory", "bad_alloc", "bad allocation")
    )


class _Inputs(list[torch.Tensor]):
    """Input tensors, shared by modules of the same input shapes; a list of its own class can be weakly referenced."""


@dataclass(frozen=True)
class _Ready:
    run: Run
    inputs: _Inputs
    own_bytes: int


def _total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _quiet_round(stopwatch: Stopwatch, run: Run, effort: Effort, throttled: Callable[[], bool]) -> Round:
    """A round during which Python's garbage collector does not run."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return time_round(stopwatch, run, effort, throttled)
    finally:
        if collecting:
            gc.enable()
