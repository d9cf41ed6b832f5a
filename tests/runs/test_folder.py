from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from dnas.errors import UserError
from dnas.runs import RunFolder, rng_state

CONFIGURATION = {"search": {"epochs": 3, "learning_rate": 1e-5, "widths": [4, 6]}, "data": {"name": "1e-3", "on": True}}


def _create(path, configuration=None, kind="search", seed=7, resume=False, **options):
    return RunFolder.create(path, kind, configuration or CONFIGURATION, seed, resume, device="cpu", **options)


@pytest.fixture
def run(tmp_path):
    with _create(tmp_path / "run") as run:
        yield run


def test_a_new_run_records_where_it_comes_from(run):
    assert yaml.safe_load((run.path / "configuration.yaml").read_text())["search"]["epochs"] == 3
    reader = RunFolder.open(run.path)
    assert (reader.kind, reader.seed) == ("search", 7)
    assert reader.configuration == run.configuration
    assert reader.environment["torch"] == torch.__version__
    wanted = {"kind", "seed", "date", "command", "device", "python", "torchvision", "numpy", "dnas", "git_commit"}
    assert wanted <= reader.environment.keys()


def test_a_folder_with_a_run_is_not_overwritten(run):
    run.close()
    with pytest.raises(UserError, match=r"contains a run already; continue it with --resume"):
        _create(run.path)


def test_resuming_where_nothing_was_begun_begins(tmp_path):
    """A process may be killed before it has written anything, or after only the configuration."""
    path = tmp_path / "deep" / "run"
    path.mkdir(parents=True)
    (path / "configuration.yaml").write_text("half: wri")
    with _create(path, resume=True) as run:
        assert run.load_state() is None
    with _create(path, resume=True) as run:
        assert len(run.environment["resumed"]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "retrain"}, "the run there is a search, it cannot be resumed as a retrain"),
        ({"seed": 8}, "seed is 7 in the run, now 8"),
        (
            {"configuration": {**CONFIGURATION, "search": {"epochs": 3, "learning_rate": 2e-5, "widths": [4]}}},
            "search.learning_rate is 1e-05 in the run, now 2e-05",
        ),
        (
            {"configuration": {**CONFIGURATION, "data": {"name": "1e-3", "on": 1}}},
            "data.on is true in the run, now 1",
        ),
        ({"configuration": {"search": CONFIGURATION["search"]}}, "data is set in the run but not in this call"),
        ({"configuration": {**CONFIGURATION, "more": {}}}, "more is set in this call but not in the run"),
    ],
)
def test_resuming_another_run_names_the_difference(run, change, message):
    run.close()
    with pytest.raises(UserError) as caught:
        _create(run.path, resume=True, **change)
    assert message in str(caught.value)
    # A refused run releases the folder.
    _create(run.path, resume=True).close()


def test_a_folder_in_use_by_another_process_is_refused(tmp_path, monkeypatch):
    _create(tmp_path).close()
    script = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("ready", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        monkeypatch.setattr("dnas.runs.folder._RESUME_PATIENCE", 0.1)
        with pytest.raises(UserError, match="another process is using this run"):
            _create(tmp_path, resume=True)
        assert RunFolder.open(tmp_path).kind == "search"
        other.kill()
    _create(tmp_path, resume=True).close()


def test_what_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(UserError, match=r"no run folder \(environment.json is missing\)"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="the run there is a search, expected a retrain"):
        RunFolder.open(run.path, kind="retrain")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write a run there"):
        _create(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "log.jsonl").write_text("somebody else's")
    with pytest.raises(UserError, match=r"contains a log.jsonl but no environment.json"):
        _create(tmp_path / "other")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "environment.json").write_text('{"kind": "sea')
    with pytest.raises(UserError, match=r"environment.json: not a valid environment of a run"):
        RunFolder.open(tmp_path / "half")
    (tmp_path / "half" / "environment.json").write_text('{"kind": "search", "seed": null}')
    with pytest.raises(UserError, match="kind and seed are missing"):
        RunFolder.open(tmp_path / "half")


def test_state_comes_back_as_it_was(run):
    assert run.load_state() is None
    state = {"weights": {"a": torch.randn(2, 3).bfloat16()}, "list": [1, None, "x", (True, 2.5)], "rng": rng_state()}
    run.save_state(state, 4)
    loaded = RunFolder.open(run.path).load_state()
    assert loaded is not None
    assert loaded["epoch"] == 4
    assert loaded["list"] == state["list"]
    assert torch.equal(loaded["weights"]["a"], state["weights"]["a"])


def test_only_what_can_be_read_back_is_saved(run):
    with pytest.raises(TypeError, match=r"state\.optimizer\.0 is a Conv2d"):
        run.save_state({"optimizer": [torch.nn.Conv2d(1, 1, 1)]}, 1)
    assert run.load_state() is None


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_malicious_state_is_refused_and_not_run(run, tmp_path, write):
    target = tmp_path / "executed"
    write({"epoch": 1, "weights": Malicious(str(target))}, run.path / "state.pt")
    with pytest.raises(UserError, match="not a readable training state"):
        run.load_state()
    assert not target.exists()
    # The malicious pickle does execute code when it is unpickled normally.
    with contextlib.suppress(RuntimeError):
        torch.load(run.path / "state.pt", weights_only=False)
    assert target.exists()


def test_a_damaged_state_is_refused(run):
    run.save_state({"weights": torch.arange(1000.0)}, 1)
    path = run.path / "state.pt"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(torch.arange(500.0, 510.0).numpy().tobytes())] ^= 1
    for damaged in (b"", b"\0" * 100, whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"state\.pt: not a readable training state"):
            run.load_state()
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="number of finished epochs is missing"):
        run.load_state()


def test_weights_come_back_as_they_were(run):
    shared = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    weights = {"a": shared, "b": shared[1:], "steps": torch.tensor(3), "half": torch.randn(3).half()}
    run.save_weights("best", weights)
    loaded = RunFolder.open(run.path).load_weights("best")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_missing_and_damaged_weights_are_named(run):
    with pytest.raises(UserError, match="no weights named best; known: none yet"):
        run.load_weights("best")
    run.save_weights("last", {"a": torch.randn(100)})
    with pytest.raises(UserError, match="no weights named best; known: last"):
        run.load_weights("best")
    path = run.path / "last.safetensors"
    for damaged in (b"", path.read_bytes()[:-8], pickle.dumps({"a": 1})):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="not a readable safetensors file"):
            run.load_weights("last")
    with pytest.raises(ValueError, match="plain name"):
        run.save_weights("../last", {})


def test_only_the_first_of_several_processes_writes(run, monkeypatch):
    run.log({"kind": "step", "epoch": 0})
    monkeypatch.setenv("RANK", "1")
    with _create(run.path) as follower:
        assert not follower.is_owner
        follower.log({"kind": "step", "epoch": 0})
        follower.save_state({}, 1)
        follower.save_weights("last", {})
        follower.truncate_log(0)
        assert len(follower.records()) == 1
    assert run.load_state() is None


def test_a_reader_does_not_write(run):
    for reader in (RunFolder.open(run.path), run):
        run.close()
        with pytest.raises(RuntimeError, match="opened for reading"):
            reader.log({"kind": "step"})


def test_the_log_is_mirrored_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars():
        events = EventAccumulator(str(tmp_path / "tensorboard" / "step"))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars("loss.student")]

    with _create(tmp_path, tensorboard=True) as run:
        for index in range(4):
            run.log({"kind": "step", "epoch": index // 2, "loss": {"student": index}})
    assert scalars() == [(0, 0), (1, 1), (2, 2), (3, 3)]
    with _create(tmp_path, tensorboard=True, resume=True) as run:
        run.truncate_log(1)
        for index in (12, 13):
            run.log({"kind": "step", "epoch": 1, "loss": {"student": index}})
    assert scalars() == [(0, 0), (1, 1), (2, 12), (3, 13)]


def test_a_state_is_that_of_its_run_and_of_its_epochs(run, tmp_path):
    run.log({"kind": "epoch", "epoch": 0})
    run.save_state({"a": 1}, 1)
    assert run.load_state(3) == {"a": 1, "epoch": 1}
    with _create(tmp_path / "other") as other:
        other.save_state({"a": 2}, 1)
        shutil.copy(other.path / "state.pt", run.path / "state.pt")
    with pytest.raises(UserError, match=r"state.pt: the state of another run"):
        run.load_state(3)
    for epochs in (-1, 0, 4, 10**12):
        run.save_state({}, epochs)
        with pytest.raises(UserError, match=f"gives {epochs} finished epochs, expected 1 to 3"):
            run.load_state(3)
    run.save_state({}, 2)
    with pytest.raises(UserError, match="the record of epoch 2 is missing"):
        run.truncate_log(2)


def test_what_decides_the_bits_is_compared_unless_the_user_accepts_it(run):
    run.close()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(UserError, match=rf"threads {threads} in the run, now {threads + 1}.*--other-environment"):
            _create(run.path, resume=True)
        _create(run.path, resume=True, other_environment=True).close()
    finally:
        torch.set_num_threads(threads)
    path = run.path / "environment.json"
    path.write_text(path.read_text().replace(f'"{torch.backends.cpu.get_cpu_capability()}"', '"VSX"'))
    with pytest.raises(UserError, match="cpu_capability VSX in the run, now"):
        _create(run.path, resume=True)


def test_resuming_removes_what_killed_writers_left(run):
    run.close()
    (run.path / ".state.pt.0123abcd.tmp").touch()
    _create(run.path, resume=True).close()
    assert not list(run.path.glob("*.tmp"))


@pytest.mark.parametrize(
    "record", [{"kind": "epoch", "epoch": "x"}, {"kind": 3}, {"kind": "step"}, {"epoch": 1e300}, {"epoch": -1}]
)
def test_a_log_with_other_records_is_one_clear_error(run, record):
    (run.path / "log.jsonl").write_text(json.dumps(record) + '\n{"kind": "epoch", "epoch": 0}\n')
    with pytest.raises(UserError, match=r"log.jsonl: line 1: (epoch|kind): "):
        run.records()
