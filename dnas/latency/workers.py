"""Measuring a list on several devices of one machine: one process per device, each with a part of the list.

The processes send every finished round to the one that started them, which alone writes the journal. So the journal
holds everything that was measured, whichever process is killed, and a later session may use another number of devices.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from dnas.errors import UserError
from dnas.latency.measure import WorkItem, measure_many
from dnas.latency.pace import Pace
from dnas.latency.setup import MeasurementSetup
from dnas.latency.statistics import Effort, Measurement, Round, summarise
from dnas.progress import NoProgress, Progress

PATIENCE_S = 5.0


@dataclass(frozen=True)
class Finished:
    """Message of a worker after a round."""

    name: str
    entry: Round


@dataclass(frozen=True)
class Failed:
    """Message of a worker that ends because of a :class:`UserError`."""

    message: str


@dataclass(frozen=True)
class Done:
    """Message of a worker that has measured its part of the list."""


@dataclass(frozen=True)
class _Job:
    """The input of a worker; it is pickled."""

    setup: MeasurementSetup
    items: tuple[WorkItem, ...]
    effort: Effort
    seed: int
    budget_s: float | None
    done: dict[str, tuple[Round, ...]]
    cache_bytes: int


def measure_on(
    setups: Sequence[MeasurementSetup],
    items: Sequence[WorkItem],
    *,
    effort: Effort,
    seed: int = 0,
    budget_s: float | None = None,
    done: Mapping[str, Sequence[Round]] | None = None,
    finished: Callable[[str, Round], None] | None = None,
    progress: Progress | None = None,
    cache_bytes: int = 1 << 30,
) -> dict[str, Measurement]:
    """:func:`dnas.latency.measure_many` in one process for each of ``setups``.

    Each process measures an equal part of the shuffled list in its own interleaved rounds, so within a session all
    rounds of an item come from one device. ``finished`` and ``progress`` are called in this process. Raises
    :class:`UserError` if a worker does, if a worker ends before its work is done, and if an item cannot be pickled: its
    ``build`` has to be a function of a module or a :func:`functools.partial` of one.
    """
    progress = progress or NoProgress()
    shuffled = random.Random(f"{seed}/workers").sample(list(items), len(items))
    rounds = {item.name: list((done or {}).get(item.name, ())) for item in items}
    pace = Pace(list(rounds), effort, done=rounds, budget_s=budget_s)
    with ExitStack() as stack:
        workers: dict[Connection, _Worker] = {}
        for number, setup in enumerate(setups):
            part = tuple(shuffled[number :: len(setups)])
            if part:
                kept = {item.name: tuple(rounds[item.name]) for item in part}
                worker = _Worker(_Job(setup, part, effort, seed, budget_s, kept, cache_bytes))
                stack.callback(worker.stop)
                workers[worker.connection] = worker
        while workers:
            for ready in wait(list(workers)):
                message = workers[ready].receive() if isinstance(ready, Connection) else None
                if isinstance(message, Finished):
                    rounds[message.name].append(message.entry)
                    if finished is not None:
                        finished(message.name, message.entry)
                    pace.finished(message.name, message.entry)
                    progress.update(pace.done, pace.total, item=message.name, left_s=pace.left_s)
                elif isinstance(ready, Connection):
                    del workers[ready]
    return {name: summarise(found, effort) for name, found in rounds.items()}


class _Worker:
    """A process that measures on one device, and the connection to it."""

    def __init__(self, job: _Job) -> None:
        self._setup = job.setup
        try:
            pickle.dumps(job)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                f"this list of modules cannot be measured by several processes ({error}); "
                "build them with module-level functions, or use one device"
            ) from None
        self.connection, theirs = multiprocessing.Pipe()
        self._process = _new_process(theirs, job)
        self._process.start()
        theirs.close()  # so that this process notices when the worker ends

    def receive(self) -> Finished | Done:
        """The next message; :class:`UserError` if the worker failed or ended before it was done."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(PATIENCE_S)
            raise UserError(
                f"the process that measures on {self._setup.device} ended with status {self._process.exitcode}; "
                "what it had measured is kept, continue with --resume"
            ) from None
        if isinstance(message, Failed):
            raise UserError(message.message)
        if not isinstance(message, Finished | Done):
            raise TypeError(f"a worker sent {type(message).__name__}")
        return message

    def stop(self) -> None:
        """End the process if it has not ended yet, and wait for it."""
        self.connection.close()  # which the worker's watching thread notices
        self._process.join(PATIENCE_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._process.close()


def _new_process(connection: Connection, job: _Job) -> BaseProcess:
    """A worker that is not started yet: forked from a server that has used no device, or else a new process.

    This process itself cannot be forked: CUDA does not survive that.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        forking = multiprocessing.get_context("forkserver")
        forking.set_forkserver_preload([__name__])
        return forking.Process(target=_work, args=(connection, job), daemon=True)
    return multiprocessing.get_context("spawn").Process(target=_work, args=(connection, job), daemon=True)


def _work(connection: Connection, job: _Job) -> None:
    """The main function of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the builder ends its workers
    threading.Thread(target=_watch, args=(connection,), daemon=True).start()
    try:
        measure_many(
            job.items,
            job.setup,
            effort=job.effort,
            seed=job.seed,
            budget_s=job.budget_s,
            done=job.done,
            finished=lambda name, entry: connection.send(Finished(name, entry)),
            cache_bytes=job.cache_bytes,
        )
        connection.send(Done())
    except UserError as error:
        connection.send(Failed(str(error)))


def _watch(connection: Connection) -> None:
    """End this process as soon as the other end closes, so that it does not disturb a later session."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(1)
