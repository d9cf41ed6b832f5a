"""The first session on a GPU, rehearsed on the CPU. All steps: ``scripts/first_gpu.sh --dry-run``, some two minutes."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from scripts.first_gpu import search_step, smoke, tables
from scripts.first_gpu.__main__ import PARTS, main
from scripts.first_gpu.session import Session, Step, records, run_part

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "first_gpu.sh"


@pytest.fixture(autouse=True)
def _workspace(monkeypatch):
    """The script sets the variable for its process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.mark.parametrize("part", ["latency", "fractional", "loader"])
def test_a_rehearsed_part_fills_the_columns_of_its_tables(part, tmp_path):
    assert main([part, "--dry-run", "--out", str(tmp_path)]) == 0
    found = records(tmp_path / f"{part}.jsonl")
    assert [record["error"] for record in found] == [None] * len(found)
    check_columns(found)


def test_one_step_of_each_kind_of_the_other_parts(tmp_path):
    session = Session(tmp_path, dry_run=True)
    # Trainings and searches are left out: they take seconds, and tests of their own.
    chosen = [step for step in smoke.steps(session) if step.name == "benchmark dwrseg_l" or step.table == "kernel"]
    chosen += [step for step in search_step.steps(session) if step.name == "search step, single paths, fp32"]
    chosen += [step for step in search_step.steps(session) if step.table == "graphs"]
    assert run_part("mixture", chosen, session) == []
    found = records(tmp_path / "mixture.jsonl")
    check_columns(found)
    assert {row["implementation"] for record in found for row in record["rows"] if "dtype" in row} == {"separable"}


def check_columns(found):
    for record in found:
        assert record["rows"]
        for row in record["rows"]:
            # What is swept is not there on a CPU, which has no kernels to configure.
            missing = (
                {key for _, key, _ in tables.TABLES[record["table"]]} - set(row) - {"warps", "stages", "positions"}
            )
            assert not missing


def test_every_table_has_a_part():
    session = Session(Path("unused"))
    assert {step.table for steps in PARTS.values() for step in steps(session)} == set(tables.TABLES)


def test_a_failed_step_is_repeated_last_and_finished_ones_are_not(tmp_path):
    calls = []

    def fails_once(session):
        calls.append("first")
        if len(calls) == 1:
            raise RuntimeError("no such kernel")
        return [{"loss": "OHEM", "cpu": 1.0, "device": 1.0}]

    def works(session):
        calls.append("second")
        return [{"loss": "Dice", "cpu": 0.5, "device": 0.5}]

    def new(session):
        calls.append("third")
        return []

    session = Session(tmp_path, dry_run=True)
    steps = [Step("losses", "one", fails_once), Step("losses", "two", works)]
    assert run_part("part", steps, session) == ["one"]
    assert "Failed: one (RuntimeError: no such kernel)." in tables.table("losses", records(tmp_path / "part.jsonl"))
    assert run_part("part", [*steps, Step("losses", "three", new)], session) == []
    assert calls == ["first", "second", "third", "first"]
    assert "Failed" not in tables.table("losses", records(tmp_path / "part.jsonl"))


def test_tables_leave_rehearsals_out(tmp_path):
    marked = "before\n<!-- begin: first gpu losses -->\nold\n<!-- end: first gpu losses -->\nafter\n"
    assert tables.with_tables(marked, tmp_path).splitlines()[3] == tables.NOTHING
    record = {
        "table": "losses",
        "step": "losses",
        "error": None,
        "rows": [{"loss": "OHEM", "cpu": 1.5, "device": 1.25}],
    }
    record |= {"environment": {"device": "A GPU", "torch": "2.14", "cuda": "13.0"}}
    for name, dry_run in (("one", False), ("two", True)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**record, "dry_run": dry_run}) + "\n")
    filled = tables.with_tables(marked, tmp_path)
    assert filled.count("| OHEM | 1.50000 | 1.25000 |  |") == 1
    assert "A GPU, torch 2.14, CUDA 13.0" in filled


def test_tables_of_the_document_are_those_of_the_rows():
    document = tables.DOCUMENT.read_text()
    assert tables.with_tables(document, tables.RESULTS) == document


def test_without_a_gpu_only_a_rehearsal_runs(tmp_path, capsys):
    assert main(["smoke", "--out", str(tmp_path)]) == 2
    assert "--dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "status", "ran"),
    [
        (["--dry-run"], 1, ["smoke", "search_step", "latency", "fractional", "loader"]),
        (["loader", "smoke"], 0, ["loader", "smoke"]),
        (["--nonsense"], 2, []),
    ],
)
def test_the_script_goes_on_after_a_failed_part(given, status, ran, tmp_path):
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(f'#!/bin/sh\necho "$3 $*" >> {log}\n[ "$3" != latency ]\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    command = [SCRIPT, *given, "--out", tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    lines = log.read_text().splitlines() if log.exists() else []
    assert [line.split()[0] for line in lines] == ran
    assert all(f"--out {tmp_path / 'out'}" in line for line in lines)
    if status == 1:
        assert "failed or not finished: latency" in done.stderr
        assert all("--dry-run" in line for line in lines)
