"""Several processes measure one list: two on the CPU instead of two GPUs."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from dnas.errors import UserError
from dnas.latency import BuildInterrupted, InventoryItem, LatencyTable, OperatorSpec, build_table
from dnas.latency.device import DeviceInfo
from dnas.latency.journal import Journal
from search_spaces import load_space


def inventory(count):
    return [
        InventoryItem(OperatorSpec("conv", ((channels, 4, 4),), channels), partial(nn.Conv2d, channels, channels, 1))
        for channels in range(1, count + 1)
    ]


@pytest.fixture
def build(tmp_path, setup, quick):
    def run(items, **options):
        options = {"space": "small", "input_size": (64, 64), "effort": quick, "workers": [setup, setup], **options}
        return build_table(items, tmp_path / "t.json", setup, **options)

    return run


def test_two_workers_go_on_where_two_were_interrupted_and_one_table_holds_all(build, tmp_path, watch):
    with pytest.raises(BuildInterrupted, match="--resume"):
        build(inventory(8), progress=watch(6))
    kept = Journal(tmp_path / "t.json.journal.jsonl").rounds
    assert sum(map(len, kept.values())) == 6
    progress = watch()
    table = build(inventory(8), resume=True, progress=progress)
    assert [report.done for report in progress.seen] == list(range(1, 11))
    assert {report.total for report in progress.seen} == {10}
    assert all(entry.rounds == 2 for entry in table.entries.values())
    assert (len(table), table.provenance.sittings) == (8, 2)
    assert LatencyTable.load(tmp_path / "t.json") == table
    assert not (tmp_path / "t.json.journal.jsonl").exists()


class Fatal(nn.Module):
    """Ends the process that runs it, like the crash of a driver."""

    def forward(self, images):
        os.kill(os.getpid(), signal.SIGKILL)
        return images


class Greedy(nn.Module):
    def forward(self, images):
        raise torch.OutOfMemoryError("no room")


# Workers import this file by this name; the tests run under another name.
HERE = "worker_modules"


@pytest.fixture
def importable(monkeypatch, tmp_path):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{HERE}.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(folder)
    yield __import__(HERE)
    sys.modules.pop(HERE)


def test_a_worker_that_dies_is_named_and_costs_nothing_else(build, tmp_path, importable, watch):
    items = [*inventory(4), InventoryItem(OperatorSpec("fatal", ((1, 2, 2),), 1), importable.Fatal)]
    with pytest.raises(UserError, match=r"measures on cpu ended with status -9; .*--resume"):
        build(items)
    before = sum(map(len, Journal(tmp_path / "t.json.journal.jsonl").rounds.values()))
    progress = watch()
    table = build(inventory(4), workers=(), resume=True, progress=progress)
    assert len(table) == 4
    assert len(progress.seen) == 8 - before


def test_the_error_of_a_worker_is_the_builders(build, importable):
    items = [*inventory(2), InventoryItem(OperatorSpec("greedy", ((1, 2, 2),), 1), importable.Greedy)]
    with pytest.raises(UserError, match="greedy in=1x2x2 out=1 stride=1: does not fit into the memory of cpu"):
        build(items)


def test_a_list_that_cannot_be_sent_is_refused(build):
    items = [InventoryItem(OperatorSpec("conv", ((1, 4, 4),), 1), lambda: nn.Conv2d(1, 1, 1))]
    with pytest.raises(UserError, match="cannot be measured by several processes"):
        build(items)


@pytest.mark.parametrize("space", ["fasterseg_demo", "fasterseg", "regseg_rectangles"])
def test_the_inventories_of_the_presets_can_be_sent(space):
    items = load_space(space, []).inventory()
    again = pickle.loads(pickle.dumps(items))
    assert [item.spec for item in again] == [item.spec for item in items]
    assert isinstance(again[0].build(), nn.Module)


BUILDER = textwrap.dedent(
    """
    import sys
    from functools import partial
    from torch import nn
    from dnas.latency import Effort, InventoryItem, OperatorSpec, build_table, make_setup
    from dnas.progress import NoProgress

    class Printed(NoProgress):
        def update(self, done, total, *, item="", left_s=None):
            print(item, flush=True)

    if __name__ == "__main__":
        items = [
            InventoryItem(OperatorSpec("conv", ((c, 4, 4),), c), partial(nn.Conv2d, c, c, 1)) for c in range(1, 400)
        ]
        setup = make_setup("cpu", threads=1)
        effort = Effort(rounds=2, time_per_entry=0.02, warm_up_s=0, extra_rounds=0)
        build_table(items, sys.argv[1], setup, space="small", input_size=(64, 64), effort=effort, resume=True,
                    workers=[setup, setup], progress=Printed())
    """
)


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [found for child in children for found in descendants(int(child))]


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see processes")
def test_killed_with_workers_nothing_is_lost_and_nobody_goes_on(tmp_path):
    """SIGKILL of the builder: reported rounds are in the journal, and the workers end by themselves."""
    out, script = tmp_path / "t.json", tmp_path / "builder.py"
    script.write_text(BUILDER)
    with subprocess.Popen([sys.executable, script, out], stdout=subprocess.PIPE, text=True) as builder:
        lines = [builder.stdout.readline() for _ in range(30)]
        workers = descendants(builder.pid)
        builder.send_signal(signal.SIGKILL)
        lines += builder.stdout.readlines()  # until the last worker has closed it
    assert len(workers) >= 2
    deadline = time.monotonic() + 20
    while any(map(running, workers)):
        assert time.monotonic() < deadline, "workers go on without their builder"
        time.sleep(0.02)
    kept = Journal(tmp_path / "t.json.journal.jsonl").rounds
    assert 30 <= len(lines) <= sum(map(len, kept.values())) <= len(lines) + 1
    assert not out.exists()


def test_devices_of_two_kinds_are_refused(build, setup, monkeypatch):
    kinds = iter(["one", "other"])
    monkeypatch.setattr(
        "dnas.latency.build.describe_device",
        lambda device: DeviceInfo(type="cuda", name=next(kinds), memory_bytes=1),
    )
    other = [make_named(setup, name) for name in ("cuda:0", "cuda:1")]
    with pytest.raises(UserError, match="cuda:0 is one, cuda:1 is other"):
        build(inventory(1), workers=other)


def make_named(setup, name):
    from dataclasses import replace

    return replace(setup, device=torch.device(name))
