"""Part 3: latency tables by three ways of running an operator, and which of them adds up to whole networks."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

from dnas.latency import Effort, LatencyTable, OperatorSpec, build_table, make_setup
from dnas.latency import backends as latency_backends
from dnas.workflows.checking import check_table
from scripts.first_gpu.session import TOY_NETWORK, Row, Session, Step
from search_spaces import load_space

BACKENDS = {"eager": "eager", "graph of one call": "cudagraph", "graph of N calls": "cudagraph"}
# Few layers have every operator at every scale; fewer ratios keep three tables within ten minutes.
SPACE = ("network.layers=6", "network.ratios=[4,8,12]")
TOY = (*TOY_NETWORK, "task.input_size=[64,64]")


def steps(session: Session) -> list[Step]:
    return [Step("latency", f"latency table, {name}", partial(_table, name)) for name in BACKENDS]


def _table(name: str, session: Session) -> list[Row]:
    """The agreement of the table with whole networks, and how much longer ``conv`` takes than ``zoomed_conv``."""
    space = load_space("fasterseg", session.sized(SPACE, TOY))
    setup = make_setup(session.device, backend=session.sized(BACKENDS[name], "eager"))
    effort = session.sized(Effort(rounds=3, time_per_entry=0.03), Effort(rounds=1, time_per_entry=1e-3, warm_up_s=0))
    inventory = space.inventory()
    with tempfile.TemporaryDirectory() as folder, _calls_per_graph(name):
        out = Path(folder) / "table.json"
        table = build_table(inventory, out, setup, space=space.name, input_size=space.input_size, effort=effort)
        found = check_table(
            table,
            space,
            session.sized(12, 2),
            repeat=True,
            effort=session.sized(Effort(rounds=3, time_per_entry=0.3), effort),
        )
    order = _order(table, [item.spec for item in inventory])
    noise = {} if found.noise is None else {f"noise_{key}": value for key, value in found.noise.to_mapping().items()}
    return [{"backend": name, "entries": len(table), **found.agreement.to_mapping(), **noise, **order}]


@contextlib.contextmanager
def _calls_per_graph(name: str) -> Iterator[None]:
    """One call in a graph is no backend for users, as small operators are then measured by their launch."""
    most = 1 if name == "graph of one call" else latency_backends.MOST_CALLS
    with mock.patch.object(latency_backends, "MOST_CALLS", most):
        yield


def _order(table: LatencyTable, specs: Sequence[OperatorSpec]) -> dict[str, float]:
    """Over all shapes that both have: the ratio of latencies of zoomed conv and conv, and how often conv is slower."""
    ratios = []
    for spec in specs:
        if spec.operator == "zoomed_conv":
            plain = dataclasses.replace(spec, operator="conv")
            ratios += [table.lookup(spec) / table.lookup(plain)] if plain in table else []
    return {
        "zoomed_to_conv": statistics.median(ratios),
        "conv_slower": sum(ratio < 1 for ratio in ratios) / len(ratios),
    }
