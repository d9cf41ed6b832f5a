"""A part is a list of steps; the rows of a finished step are one JSON line, and a step with a line is not run again."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from dnas.environment import describe_environment
from dnas.json_lines import append_record, read_lines, repair

Row = Mapping[str, Any]
Value = TypeVar("Value")
WHAT = "results of a session on a GPU"


TOY_NETWORK = (
    *("network.layers=2", "network.scales=[8,16]", "network.branches=1", "network.operators=[skip,conv,zoomed_conv]"),
    *("network.ratios=[2]", "network.student_ratio=2", "network.teacher_ratio=2"),
)
"""Settings of a FasterSeg space that is searched and measured in seconds."""


class WrongResultError(Exception):
    """A result on the device is not what it has to be."""


@dataclass(frozen=True)
class Session:
    """Where results go, and whether this is a rehearsal on the CPU at toy size."""

    out: Path
    dry_run: bool = False

    @property
    def device(self) -> torch.device:
        """The first GPU, or the CPU in a rehearsal; nothing is initialised."""
        return torch.device("cpu") if self.dry_run else torch.device("cuda", 0)

    def sized(self, real: Value, toy: Value) -> Value:
        """``real`` on the GPU, ``toy`` in a rehearsal."""
        return toy if self.dry_run else real

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Step:
    """One thing to try: the table that its rows belong to, its name, and the function that returns the rows."""

    table: str
    name: str
    run: Callable[[Session], Sequence[Row]]


def run_part(part: str, steps: Sequence[Step], session: Session) -> list[str]:
    """Run the steps that have no rows yet; returns the names of those that failed.

    A failed step does not stop the others. In the next call it comes last: an error of CUDA spoils the whole process,
    so that later steps fail, too.
    """
    path = session.out / f"{part}.jsonl"
    session.out.mkdir(parents=True, exist_ok=True)
    repair(path, WHAT)
    known = records(path)
    finished = {record["step"] for record in known if record["error"] is None}
    failed_before = {record["step"] for record in known} - finished
    open_steps = [step for step in steps if step.name not in finished]
    failed, environment = [], None
    for step in sorted(open_steps, key=lambda step: step.name in failed_before):
        print(f"{part}: {step.name}", file=sys.stderr, flush=True)
        started, rows, problem = time.perf_counter(), (), None
        try:
            rows = tuple(step.run(session))
        except Exception as error:  # whatever it is, the other steps go on
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"[:500]
            failed.append(step.name)
        environment = environment or describe_environment(session.device)  # after a step, as it initialises the GPU
        append_record(
            path,
            {
                "part": part,
                "table": step.table,
                "step": step.name,
                "error": problem,
                "rows": rows,
                "seconds": time.perf_counter() - started,
                "dry_run": session.dry_run,
                "environment": environment,
            },
            sync=True,
        )
    return failed


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a part, none if it has not been run; damaged ones are left out."""
    return [line.record for line in read_lines(path, WHAT) if line.record is not None]
