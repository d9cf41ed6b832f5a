from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnas.errors import UserError
from dnas.runs import RunFolder

RECORDS = [{"kind": kind, "epoch": epoch, "loss": 0.1 * epoch} for epoch in range(3) for kind in ("step", "epoch")]


def _open(path, resume=True):
    return RunFolder.create(path, "search", {}, 0, resume, device="cpu")


@pytest.fixture
def run(tmp_path):
    with _open(tmp_path) as run:
        for record in RECORDS:
            run.log(record)
        yield run


def test_records_are_read_by_kind(run):
    assert run.records() == RECORDS
    assert run.records("epoch") == RECORDS[1::2]


def test_a_log_is_cut_back_to_finished_epochs(run):
    before = (run.path / "log.jsonl").read_bytes().splitlines(keepends=True)
    run.truncate_log(2)
    assert (run.path / "log.jsonl").read_bytes() == b"".join(before[:4])
    run.truncate_log(2)
    run.truncate_log(0)
    assert run.records() == []


def test_scalars_of_numpy_and_torch_become_numbers(run):
    run.log({"kind": "step", "epoch": 3, "a": np.float32(0.5), "b": torch.tensor(2), "c": [np.int64(1), None, True]})
    assert run.records()[-1] == {"kind": "step", "epoch": 3, "a": 0.5, "b": 2, "c": [1, None, True]}
    with pytest.raises(TypeError, match=r"c\.d is a set"):
        run.log({"c": {"d": set()}})


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor(math.nan), np.float64("-inf")])
def test_what_is_not_finite_is_refused_by_name(run, value):
    with pytest.raises(UserError, match=r"loss\.student became .*diverged"):
        run.log({"kind": "step", "epoch": 3, "loss": {"student": value}})
    assert run.records() == RECORDS


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400))
def test_a_log_cut_anywhere_is_read_and_goes_on(tmp_path_factory, cut):
    """Wherever the file was cut, complete lines are kept and the next record starts on a new line."""
    path = tmp_path_factory.mktemp("run")
    with _open(path) as run:
        for record in RECORDS:
            run.log(record)
    log = path / "log.jsonl"
    data = log.read_bytes()[:cut]
    log.write_bytes(data)
    whole = data.count(b"\n")
    assert RunFolder.open(path).records() == RECORDS[:whole]
    with _open(path) as run:
        run.log(RECORDS[0])
        assert run.records() == [*RECORDS[:whole], RECORDS[0]]


def test_damage_within_a_log_is_named(run):
    log = run.path / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for damage in (b"\0\0\0\n", b"[1]\n", b'{"kind": \n'):
        log.write_bytes(lines[0] + damage + b"".join(lines[1:]))
        with pytest.raises(UserError, match=r"log\.jsonl: line 2 is no log record"):
            run.records()
    # At the end, a damaged line is the result of a crash of the machine.
    log.write_bytes(lines[0] + b"\0\0\0\n")
    assert run.records() == RECORDS[:1]
