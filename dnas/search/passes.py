"""The passes of a step side by side, in processes over the same weights.

On a CPU the small maps of a supernet keep few threads busy, and threads of one process wait for Python's lock at each
of thousands of small operations. Forks do not. Weights, momenta and gradients lie in memory that they share
(:mod:`dnas.search.sharing`); the bits are those of passes one after the other (:mod:`dnas.ops.turns`).
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from dnas.errors import UserError
from dnas.ops import Turns
from dnas.search.sharing import return_free_memory

Request = TypeVar("Request")
Result = TypeVar("Result")

PATIENCE_S = 5.0


def can_fork() -> bool:
    """Whether passes can run in forks: Linux, without an accelerator, which a fork could not use or may disturb.

    Nor may a process that is a daemon itself, such as a worker of a pool, have any.
    """
    daemon = multiprocessing.current_process().daemon
    return sys.platform == "linux" and not daemon and not torch.accelerator.is_available()


class PassPool(Generic[Request, Result]):
    """One process with its forks, which share the passes of a step; alone it runs one after the other.

    A request says what the passes of a step depend on besides shared memory and what nobody changes; ``prepare`` makes
    passes of it, the same in every process, to be run within its context. Requests and results are pickled.

    peak_mb: the most memory in MiB that the forks held, each when it was last to give back memory, besides what they
        share with this process.
    """

    def __init__(
        self,
        prepare: Callable[[Request], AbstractContextManager[Sequence[Callable[[], Result]]]],
        *,
        processes: int = 1,
        weights: Sequence[Tensor] = (),
        finish: Callable[[Tensor], None] | None = None,
    ) -> None:
        """``weights`` are in shared memory and gather their gradients there.

        ``finish`` may take up the gradient of a weight, in any of the processes, as soon as no pass needs the weight or
        adds to it any more; without it, and where there is but one process, it is left to the caller of :meth:`run`.

        Each process gets its share of PyTorch's threads (at least one).
        """
        self._prepare, self._processes = prepare, processes
        self._threads = max(1, torch.get_num_threads() // processes)
        self._turns = Turns(weights, self._look, finish, processes=processes) if processes > 1 else None
        self._forks: list[_Fork] = []
        self.peak_mb = 0.0
        self._owner = os.getpid()

    @property
    def side_by_side(self) -> bool:
        """Whether there is more than one process."""
        return self._turns is not None

    def run(self, request: Request) -> list[Result]:
        """The results of all passes in their order, once all have ended; the first failure among them is raised.

        A :class:`UserError` where a process was ended from outside.
        """
        if self._turns is None:
            with self._prepare(request) as passes:
                return [one() for one in passes]
        if not self._forks:  # in the state that training is in, which is the one to stay in
            self._fork()
        self._turns.begin()
        for fork in self._forks:
            fork.send(request)
        with _threads(self._threads):
            found = self._take_part(self._turns, request, 0)
            self._turns.finish_others()
        held_mb = 0.0
        for fork in self._forks:
            theirs = fork.receive()
            found.update(theirs.results)
            held_mb += theirs.held_mb
        self.peak_mb = held_mb
        results = [found[index] for index in sorted(found)]
        for one in results:
            if isinstance(one, BaseException):
                raise one
        return results

    def give_back(self) -> None:
        """Give free memory back to the system, in all processes: after some runs it is in pieces, and would only grow.

        At the end of a step rather than of a run, as the next run has to ask for it again.
        """
        if self._turns is not None:
            for fork in self._forks:
                fork.send(_GiveBack())
            return_free_memory()

    def added(self) -> list[Tensor]:
        """The weights to whose gradients the last passes added, where they ran side by side; none that is finished."""
        return [] if self._turns is None else self._turns.added()

    def close(self) -> None:
        """End the other processes."""
        for fork in self._forks:
            fork.end()
        self._forks = []

    def _fork(self) -> None:
        return_free_memory()
        # A thread that never ran an operation: OpenMP does not survive the fork of one that has threads of its own.
        with ThreadPoolExecutor(1) as thread:
            for number in range(1, self._processes):
                self._forks.append(thread.submit(_Fork, functools.partial(self._serve, number)).result())

    def _take_part(self, turns: Turns, request: Request, number: int) -> dict[int, Any]:
        """The results, or failures, of the passes that this process, of a number, runs."""
        found: dict[int, Any] = {}
        with self._prepare(request) as passes:
            for index in turns.taken(len(passes), number):
                with turns.running(index):
                    found[index] = _outcome(passes[index])
        return found

    def _serve(self, number: int, connection: Connection) -> None:
        """What a fork does, until the connection ends."""
        assert self._turns is not None
        torch.set_num_threads(self._threads)
        held_mb = 0.0
        while True:
            try:
                request = connection.recv()
            except (EOFError, OSError):
                return
            if isinstance(request, _GiveBack):
                held_mb = max(held_mb, _own_memory_mb())  # before, and while the first process goes on
                return_free_memory()
                continue
            found = self._take_part(self._turns, request, number)
            part = _Part({index: _sendable(result) for index, result in found.items()}, held_mb)
            message = ForkingPickler.dumps(part)  # while the first process is not yet waiting for it
            self._turns.finish_others()
            with contextlib.suppress(OSError):  # the next request will not come either
                connection.send_bytes(message)

    def _look(self) -> None:
        """While a pass waits: end a fork whose owner has ended, or raise a UserError where a fork has."""
        if os.getpid() != self._owner:
            if os.getppid() != self._owner:
                os._exit(1)
            return
        for fork in self._forks:
            fork.look()


class _GiveBack:
    """What a fork is sent instead of a request, and does not answer."""


@dataclass(frozen=True)
class _Part:
    """What a fork has done: its passes' results or failures, and the most memory in MiB that it held before."""

    results: dict[int, Any]
    held_mb: float


class _Fork:
    """A process that serves this one, and the connection to it."""

    def __init__(self, serve: Callable[[Connection], None]) -> None:
        forking = multiprocessing.get_context("fork")
        self._connection, theirs = forking.Pipe()
        ends = theirs, self._connection
        self._process: BaseProcess = forking.Process(target=_serve_only, args=(serve, *ends), daemon=True)
        with warnings.catch_warnings():
            # Locks that threads hold now stay locked in a fork, which runs nothing but passes, and none of those.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                self._process.start()
            except OSError as error:
                raise UserError(
                    f"the search cannot be shared by several processes ({error}); use search.passes_at_once=1"
                ) from None
        theirs.close()  # so that its end is seen here when the process ends
        # Also at the end of a program that does not close its pool, which would wait for the process for ever.
        self._end = multiprocessing.util.Finalize(self, _end, (self._process, self._connection), exitpriority=0)

    def send(self, request: object) -> None:
        with self._mourned():
            self._connection.send(request)

    def receive(self) -> _Part:
        with self._mourned():
            part: _Part = self._connection.recv()
        return part

    def look(self) -> None:
        """Raise a UserError if the process has ended."""
        with self._mourned():
            if not self._process.is_alive():
                raise EOFError

    @contextlib.contextmanager
    def _mourned(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):
            self._process.join(PATIENCE_S)
            raise UserError(
                f"a process of the search ended with status {self._process.exitcode} (-9: the system may have been "
                "short of memory); go on with --resume, with search.passes_at_once=1 for less memory"
            ) from None

    def end(self) -> None:
        """At once: it has nothing to lose."""
        self._end()


def _end(process: BaseProcess, connection: Connection) -> None:
    connection.close()
    process.kill()
    process.join()
    process.close()


def _serve_only(serve: Callable[[Connection], None], connection: Connection, other_end: Connection) -> None:
    """Serve and end, without what a program does at its end: that is for the process that was forked."""
    other_end.close()  # so that the end of that process is seen here
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the first process ends the others
        signal.signal(number, signal.SIG_IGN)
    status = 1
    try:
        serve(connection)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def _own_memory_mb() -> float:
    """What this process shares with no other, in MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 2**10


def _outcome(one: Callable[[], Result]) -> Result | Exception:
    try:
        return one()
    except Exception as error:
        return error


def _sendable(result: object) -> object:
    """The result, or a failure as it can be sent."""
    if not isinstance(result, BaseException) or isinstance(result, UserError):
        return result
    text = "".join(traceback.format_exception(result)).rstrip()
    return RuntimeError(f"in a process of the search:\n{text}")


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within, PyTorch has so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
