"""A search killed by SIGKILL at any time and resumed is bit-identical to an uninterrupted one."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = '''
import gc
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, sys.argv[1])
from conftest import lasting, make_config, make_target, run_joint, run_search

from dnas.runs import RunFolder

torch.set_num_threads(1)
gc.freeze()  # each search collects at its end
config = make_config(pretrain_epochs=1, search_epochs=2)
root = Path(sys.argv[2])


def forked(work):
    """Run in a child process, so that every run has the same initial state; returns its signal or exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def before(method, count, owner=RunFolder):
    """Die before the ``count``-th call of ``method``."""
    calls = []
    original = getattr(owner, method)

    def counted(*arguments, **options):
        calls.append(method)
        if len(calls) == count:
            die()
        return original(*arguments, **options)

    return lambda: setattr(owner, method, counted)


def half_written(count):
    """Die when the ``count``-th state is written to its temporary file, but has not yet replaced the old one."""
    states = []
    replace = Path.replace

    def counted(self, target):
        states.extend([target] if Path(target).name == "state.pt" else [])
        if len(states) == count:
            die()
        return replace(self, target)

    return lambda: setattr(Path, "replace", counted)


# An epoch logs three records (two steps and the epoch), then saves its logits and its state.
KILLS = {
    "while the second state is written": [half_written(2)],
    "at the first step after the second state": [before("log", 7)],
    "before the last record": [before("log", 9)],
    # In the middle of the first epoch, between logits and state of the second, in the middle of the third:
    "again and again": [before("log", 2), before("save_state", 2), before("log", 5)],
}


if sys.argv[3] != "bilevel":  # the other searches differ only in the training of an epoch
    KILLS = {name: KILLS[name] for name in ("while the second state is written", "again and again")}


def search(path, kill=None, resume=False):
    if kill is not None:
        kill()
    if sys.argv[3] == "joint":
        run_joint(path, resume=resume)
    else:
        run_search(path, config, resume=resume, latency_target=make_target(0.7) if sys.argv[3] == "target" else None)


def compare(path, other):
    assert lasting(path) == lasting(other), "logs differ"
    logits = "architecture.safetensors"
    assert (path / logits).read_bytes() == (other / logits).read_bytes(), "logits differ"
    same(RunFolder.open(path).load_state(), RunFolder.open(other).load_state(), "state")


def same(first, second, where):
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert list(first) == list(second), where
        for key in first:
            same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second)):
            same(*pair, f"{where}.{index}")
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), where
    else:
        assert first == second, where


assert forked(lambda: search(root / "whole")) == 0
assert len(RunFolder.open(root / "whole").records("epoch")) == 3
for name, kills in KILLS.items():
    path = root / name.replace(" ", "_")
    for kill in kills:
        assert forked(lambda: search(path, kill, resume=True)) == -signal.SIGKILL, name
    assert forked(lambda: search(path, resume=True)) == 0, name
    compare(path, root / "whole")
print("identical", len(KILLS))
'''


@pytest.mark.parametrize("kind", ["bilevel", "joint", "target"])
def test_killed_searches_resume_bit_identical(tmp_path, kind):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(Path(__file__).parent), str(tmp_path), kind],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"identical {4 if kind == 'bilevel' else 2}\n"
