import itertools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from torch import nn

from dnas.errors import UserError
from dnas.latency import BuildInterrupted, Effort, InventoryItem, LatencyTable, OperatorSpec, build_table, make_setup
from dnas.latency.journal import Journal
from dnas.latency.statistics import HostStopwatch
from dnas.progress import NoProgress


def inventory(count, made=None):
    def build(channels):
        if made is not None:
            made.append(channels)
        return nn.Conv2d(channels, channels, 1)

    return [
        InventoryItem(OperatorSpec("conv", ((channels, 4, 4),), channels), lambda channels=channels: build(channels))
        for channels in range(1, count + 1)
    ]


@pytest.fixture
def build(tmp_path, setup, quick):
    def run(items, **options):
        options = {"space": "small", "input_size": (64, 64), "effort": quick, **options}
        return build_table(items, tmp_path / "t.json", options.pop("setup", setup), **options)

    return run


def test_every_signature_is_measured_once(build, tmp_path):
    made = []
    table = build(inventory(3, made) + inventory(3, made))
    assert sorted(made) == [1, 2, 3]
    assert sorted(table.entries) == [f"conv in={c}x4x4 out={c} stride=1" for c in (1, 2, 3)]
    assert all(entry.rounds == 2 for entry in table.entries.values())
    assert LatencyTable.load(tmp_path / "t.json") == table
    assert not (tmp_path / "t.json.journal.jsonl").exists()
    provenance = table.provenance
    assert (provenance.space, provenance.input_size, provenance.sittings) == ("small", (64, 64), 1)
    assert provenance.device.name
    assert provenance.device.cores
    assert provenance.software["torch"]
    assert provenance.effort["rounds"] == 2


@pytest.mark.parametrize(("slow", "doubted"), [(1.1, False), (1.6, True)])
def test_a_device_of_two_speeds_makes_a_doubtful_table(build, monkeypatch, slow, doubted):
    """As a virtual machine beside a busy neighbour: of three samples two take their time, and one takes longer."""
    seconds = itertools.cycle([1e-3, 1e-3, slow * 1e-3])
    monkeypatch.setattr(HostStopwatch, "time", lambda self, run, repetitions, meanwhile=None: next(seconds))
    told = []
    progress = NoProgress()
    monkeypatch.setattr(progress, "message", told.append, raising=False)
    build(inventory(3), effort=Effort(rounds=3, time_per_entry=0.03, warm_up_s=0, sample_s=0), progress=progress)
    assert [line.split(":")[0] for line in told] == ["warning"] * doubted
    assert all("vary by 60 % or more" in line for line in told)


def test_an_existing_table_is_not_overwritten(build, tmp_path):
    build(inventory(2))
    before = (tmp_path / "t.json").read_bytes()
    with pytest.raises(UserError, match="--resume"):
        build(inventory(3))
    assert (tmp_path / "t.json").read_bytes() == before


def test_resume_measures_only_what_is_missing(build):
    first = build(inventory(2))
    assert build(inventory(2), resume=True) == first
    made = []
    table = build(inventory(4, made), resume=True)
    assert sorted(made) == [3, 4]
    assert len(table) == 4
    assert all(table.entries[key] == entry for key, entry in first.entries.items())
    assert table.provenance.sittings == 2
    assert table.provenance.seconds > first.provenance.seconds


def test_resume_keeps_every_finished_round(build, tmp_path, watch):
    with pytest.raises(BuildInterrupted, match=r"continue with `dnas latency build small --out t.json --resume`"):
        build(inventory(5), progress=watch(7), command="dnas latency build small --out t.json")
    with pytest.raises(UserError, match="interrupted build"):
        build(inventory(5))
    journal = Journal(tmp_path / "t.json.journal.jsonl")
    assert sum(map(len, journal.rounds.values())) == 7
    progress = watch()
    table = build(inventory(5), resume=True, progress=progress)
    assert progress.seen[-1].done == 3
    assert len(table) == 5
    for key, rounds in journal.rounds.items():
        if len(rounds) == 2:
            samples = [sample for entry in rounds for sample in entry.samples_ms]
            assert min(samples) <= table.entries[key].median <= max(samples)
    assert table.provenance.sittings == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"setup": make_setup("cpu", precision="bf16")}, "precision: fp32 and bf16"),
        ({"setup": make_setup("cpu", channels_last=True)}, "memory_format: contiguous and channels_last"),
        ({"input_size": (32, 32)}, "input_size"),
        ({"effort": Effort(rounds=9)}, "rounds: 2.0 and 9.0"),
    ],
)
def test_resume_with_other_settings_names_them(build, options, message, watch):
    with pytest.raises(BuildInterrupted):
        build(inventory(3), progress=watch(2))
    with pytest.raises(UserError, match=message):
        build(inventory(3), resume=True, **options)


def test_a_damaged_journal_costs_only_the_damaged_lines(build, tmp_path, watch):
    with pytest.raises(BuildInterrupted):
        build(inventory(6), progress=watch(9))
    path = tmp_path / "t.json.journal.jsonl"
    data, rng = path.read_bytes(), random.Random(0)
    header = data.index(b"\n") + 1
    whole = {(key, entry) for key, rounds in Journal(path).rounds.items() for entry in rounds}
    for _ in range(200):
        at = rng.randrange(header, len(data))
        damaged = rng.choice([data[:at], data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]])
        path.write_bytes(damaged)
        journal = Journal(path)
        left = {(key, entry) for key, rounds in journal.rounds.items() for entry in rounds}
        assert left <= whole
        lost = damaged.count(b"\n") if len(damaged) < len(data) else len(data.splitlines()) - 2
        assert len(left) >= lost - 2
    path.write_bytes(data[:-20])
    assert len(build(inventory(6), resume=True)) == 6
    path.write_bytes(b"x" + data)
    with pytest.raises(UserError, match="first line of this journal is damaged"):
        build(inventory(6), resume=True)


def test_what_was_measured_within_a_budget_goes_on(build, watch):
    """Coarse first; the next session only adds the missing rounds."""
    with pytest.raises(BuildInterrupted):
        build(inventory(6), budget_s=0.0, progress=watch(4))
    progress = watch()
    table = build(inventory(6), budget_s=1000.0, resume=True, progress=progress)
    assert progress.seen[-1].done == progress.seen[-1].total == 6 * 2 - 4
    assert progress.seen[-1].left_s == 0
    assert all(entry.rounds == 2 for entry in table.entries.values())


def test_a_budget_measures_everything_at_least_once(build):
    table = build(inventory(6), budget_s=0.0)
    assert len(table) == 6
    assert all(entry.rounds == 1 for entry in table.entries.values())


def test_nowhere_to_write(build, tmp_path, setup, quick):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        build_table(inventory(1), tmp_path / "file" / "t.json", setup, space="small", input_size=(8, 8), effort=quick)


BUILDER = textwrap.dedent(
    """
    import os, sys, time
    from torch import nn
    from dnas.errors import UserError
    from dnas.latency import Effort, InventoryItem, OperatorSpec, build_table, make_setup
    from dnas.progress import NoProgress

    def build(out, pause):
        items = [
            InventoryItem(OperatorSpec("conv", ((c, 4, 4),), c), lambda c=c: nn.Conv2d(c, c, 1)) for c in range(1, 41)
        ]

        class Printed(NoProgress):
            def update(self, done, total, *, item="", left_s=None):
                print(item, flush=True)
                time.sleep(pause)

        effort = Effort(rounds=4, time_per_entry=0.001, warm_up_s=0, extra_rounds=0)
        build_table(items, out, make_setup("cpu", threads=1), space="small", input_size=(8, 8), effort=effort,
                    resume=True, progress=Printed())

    # One import of torch serves all builders: each is a fork, made before torch has started any thread.
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                pause, out = line.strip().split(" ", 1)
                build(out, float(pause))
            except UserError as error:
                print("error:", error, flush=True)
            os._exit(0)
        print("builder", child, flush=True)
        os.waitpid(child, 0)
        print("end", flush=True)
    """
)


class Builders:
    """A process that starts table builds, one after the other; each is killed or runs to its end."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", BUILDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def line(self):
        return self.process.stdout.readline().strip()

    def start(self, pause, out):
        self.process.stdin.write(f"{pause} {out}\n")
        self.process.stdin.flush()
        lines = [self.line()]
        while not lines[-1].startswith("builder "):
            lines.append(self.line())
        return int(lines[-1].split()[1]), lines[:-1]

    def rest(self):
        return list(iter(self.line, "end"))


@pytest.fixture(scope="module")
def builders():
    with Builders() as found:
        yield found


def test_killed_at_twenty_random_moments_nothing_is_lost(tmp_path, builders):
    """SIGKILL after some visits: all reported visits are in the journal, and the build continues."""
    out, rng, kept = tmp_path / "t.json", random.Random(0), 0
    for _ in range(20):
        builder, lines = builders.start(0.002, out)
        while len(lines) < rng.randrange(1, 7):
            lines.append(builders.line())
        time.sleep(rng.random() * 0.004)
        os.kill(builder, signal.SIGKILL)
        lines += builders.rest()
        now = sum(map(len, Journal(tmp_path / "t.json.journal.jsonl").rounds.values()))
        # A visit that was not reported yet when the signal arrived may already be on disk.
        assert kept + len(lines) <= now <= kept + len(lines) + 1
        kept = now
        assert not out.exists()
    _, lines = builders.start(0, out)
    lines += builders.rest()
    assert len(lines) == 40 * 4 - kept
    table = LatencyTable.load(out)
    assert len(table) == 40
    assert all(entry.rounds == 4 for entry in table.entries.values())
    assert table.provenance.sittings == 21
    assert not (tmp_path / "t.json.journal.jsonl").exists()


def test_killed_while_it_grows_a_table_stays_what_it_was(tmp_path, builders):
    """A finished table of some entries is extended, the builder is killed each time: the file never changes until all
    is measured."""
    out, rng = tmp_path / "t.json", random.Random(1)
    effort = Effort(rounds=4, time_per_entry=0.001, warm_up_s=0, extra_rounds=0)
    build_table(inventory(5), out, make_setup("cpu", threads=1), space="small", input_size=(8, 8), effort=effort)
    before, first = out.read_bytes(), LatencyTable.load(out)
    for _ in range(6):
        builder, lines = builders.start(0.001, out)
        while len(lines) < rng.randrange(1, 5):
            lines.append(builders.line())
        time.sleep(rng.random() * 0.004)
        os.kill(builder, signal.SIGKILL)
        builders.rest()
        assert out.read_bytes() == before
    builders.start(0, out)
    builders.rest()
    grown = LatencyTable.load(out)
    assert len(grown) == 40
    assert all(grown.entries[key] == entry for key, entry in first.entries.items())


def test_a_second_builder_is_told_who_holds_the_table(build, tmp_path, builders):
    out = tmp_path / "t.json"
    builder, _ = builders.start(0.01, out)
    assert builders.line().startswith("conv")
    with pytest.raises(UserError, match=f"is being built by process {builder} on"):
        build(inventory(3), resume=True)
    lines = builders.rest()
    assert not any(line.startswith("error:") for line in lines)
    assert len(LatencyTable.load(out)) == 40
    assert json.loads(out.read_text())["provenance"]["sittings"] == 1
