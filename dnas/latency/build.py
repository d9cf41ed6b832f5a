"""Building a latency table from the inventory of a space: resumable, safe to kill, one builder at a time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import filelock
import torch

from dnas.errors import Interrupted, UserError
from dnas.files import check_replaceable, remove_temporary
from dnas.latency.backends import find_backend
from dnas.latency.device import describe_device
from dnas.latency.journal import Journal
from dnas.latency.measure import WorkItem, measure_many
from dnas.latency.provenance import Provenance, differences, finish_provenance, start_provenance
from dnas.latency.setup import MeasurementSetup
from dnas.latency.spec import InventoryItem
from dnas.latency.statistics import Effort, Measurement, Round
from dnas.latency.table import LatencyTable
from dnas.latency.workers import measure_on
from dnas.progress import NoProgress, Progress


class BuildInterrupted(Interrupted):
    """The user stopped a build. Everything measured so far is kept, and ``--resume`` continues from there."""


def build_table(
    inventory: Sequence[InventoryItem],
    out: str | Path,
    setup: MeasurementSetup,
    *,
    space: str,
    input_size: tuple[int, int],
    effort: Effort | None = None,
    resume: bool = False,
    budget_s: float | None = None,
    seed: int = 0,
    command: str | None = None,
    cache_bytes: int = 1 << 30,
    progress: Progress | None = None,
    workers: Sequence[MeasurementSetup] = (),
) -> LatencyTable:
    """Measure every distinct signature of ``inventory`` with ``setup`` and write the table ``out``.

    ``space`` and ``input_size`` (height, width) are those of the inventory, ``command`` is the command line that builds
    this table. Each finished round is written to the journal ``OUT.journal.jsonl`` immediately; at the end the table
    replaces ``out`` atomically, and the journal is removed. ``resume`` continues an interrupted build from its journal,
    or adds missing entries to a finished table. ``workers`` are setups that differ from ``setup`` at most in the
    device: one process for each of them measures a part of the list, and this process only collects the results.

    Raises :class:`UserError` if ``out`` or its journal exists without ``resume``, if the existing one was measured
    differently (naming every difference), if the workers' devices differ, and if another process is building the same
    table (naming it); raises :class:`BuildInterrupted` on Ctrl-C.
    """
    out = Path(out)
    effort = effort or Effort()
    find_backend(setup)
    devices = _alike(workers) if workers else (setup.device,)
    items = {item.spec.key: item for item in reversed(inventory)}
    check_replaceable(out)
    journal_path = out.with_name(f"{out.name}.journal.jsonl")
    with _only_builder(out, journal_path):
        remove_temporary(out.parent, out.name)
        existing = _existing_table(out, journal_path, resume)
        journal = Journal(journal_path)
        provenance = start_provenance(
            setup, effort, space=space, input_size=input_size, command=command, devices=devices
        )
        for path, earlier in ((out, existing.provenance if existing else None), (journal_path, journal.provenance)):
            _check_same(path, earlier, provenance)
        known = dict(existing.entries) if existing else {}
        todo = [_work(key, item) for key, item in items.items() if key not in known]
        if existing and not todo:
            journal.remove()
            return existing
        progress = progress or NoProgress()
        journal.begin(provenance)
        measured, seconds = _measure(
            todo, workers or (setup,), journal, out, command, effort=effort, seed=seed, budget_s=budget_s,
            cache_bytes=cache_bytes, progress=progress,
        )  # fmt: skip
        finished = finish_provenance(
            existing.provenance if existing else journal.provenance or provenance,
            devices,
            seconds=seconds + journal.seconds,
            sittings=journal.sittings,
        )
        table = LatencyTable(finished, {**known, **measured}, out)
        table.save(out)
        journal.remove()
        if doubt := table.doubt():
            progress.message(doubt)
        return table


def _measure(
    todo: Sequence[WorkItem],
    setups: Sequence[MeasurementSetup],
    journal: Journal,
    out: Path,
    command: str | None,
    *,
    effort: Effort,
    seed: int,
    budget_s: float | None,
    cache_bytes: int,
    progress: Progress,
) -> tuple[dict[str, Measurement], float]:
    progress.begin(f"measure {len(todo)} operators")
    started = last = time.monotonic()

    def keep(key: str, entry: Round) -> None:
        nonlocal last
        now = time.monotonic()
        journal.append(key, entry, now - last)
        last = now

    measure = partial(measure_many, setup=setups[0]) if len(setups) == 1 else partial(measure_on, setups)
    try:
        measured = measure(
            items=todo,
            effort=effort,
            seed=seed,
            budget_s=budget_s,
            done=journal.rounds,
            finished=keep,
            progress=progress,
            cache_bytes=cache_bytes,
        )
    except KeyboardInterrupt as error:
        raise BuildInterrupted(
            f"{out}: interrupted; everything measured so far is kept in {journal.path}, "
            f"continue with `{_resume_command(command, out)}`",
            getattr(error, "number", signal.SIGINT),
        ) from None
    return measured, time.monotonic() - started


def _alike(workers: Sequence[MeasurementSetup]) -> tuple[torch.device, ...]:
    """The devices of the workers, which must be of one kind: a table describes a single kind."""
    if any(replace(worker, device=workers[0].device) != workers[0] for worker in workers):
        raise ValueError("the workers of one table may only differ in their devices")
    found = {str(worker.device): describe_device(worker.device).name for worker in workers}
    if len(set(found.values())) > 1:
        names = ", ".join(f"{device} is {name}" for device, name in found.items())
        raise UserError(f"devices of one table must be of one kind, but {names}; build a table for each kind")
    return tuple(worker.device for worker in workers)


def _existing_table(out: Path, journal: Path, resume: bool) -> LatencyTable | None:
    for path, what in ((out, "exists already"), (journal, "was left by an interrupted build")):
        if path.exists() and not resume:
            raise UserError(f"{path}: {what}; continue with --resume, or delete it to measure everything again")
    return LatencyTable.load(out) if out.exists() else None


def _check_same(path: Path, earlier: Provenance | None, now: Provenance) -> None:
    found = differences(earlier, now) if earlier else []
    if found:
        raise UserError(
            f"{path}: cannot be continued, it was measured differently (before and now): {'; '.join(found)}; "
            "use the same settings, or another --out"
        )


def _work(key: str, item: InventoryItem) -> WorkItem:
    return WorkItem(key, item.spec.inputs, item.build)


def _resume_command(command: str | None, out: Path) -> str:
    given = command or f"dnas latency build SPACE --out {out}"
    return f"{given.replace(' --resume', '')} --resume"


@contextmanager
def _only_builder(out: Path, journal: Path) -> Iterator[None]:
    """Hold the lock of the table, or name its holder. The empty lock file stays: removing it would break the lock."""
    lock = filelock.FileLock(out.with_name(f".{out.name}.lock"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"{out}: is being built by {Journal(journal).holder}; wait until it has finished, or use another --out"
        ) from None
    except OSError as error:
        raise UserError(f"{out}: cannot write a table here: {error.strerror or error}; use another --out") from None
    try:
        yield
    finally:
        lock.release()
