"""``dnas study`` with real jobs: on this machine, and on a Ray cluster that loses a node, to the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dnas.cli import main
from dnas.files import read_json
from dnas.json_lines import read_lines

STUDY = """
base: regseg_small
vary: {seed: [0, 1]}
jobs:
  train:
    command: retrain $space
    options:
      data: rectangles
      data-set: {size: [64, 64], images: {train: 16, val: 2, test: 2}}
      set: {epochs: 12, batch_size: 4, validate_every: 12}
      seed: $seed
      device: cpu
"""

KILL_A_NODE = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from dnas.workflows.study.config import load_study
from dnas.workflows.study.ray_engine import RayEngine
from dnas.workflows.study.running import run_study

folder = Path(sys.argv[2])
health = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": health})
node = cluster.add_node(num_cpus=1)

def kill():
    logs = [folder / "jobs" / f"train-seed={seed}" / "log.jsonl" for seed in (0, 1)]
    while not all(log.exists() and '"epoch"' in log.read_text() for log in logs):
        time.sleep(0.02)
    cluster.remove_node(node, allow_graceful=False)

killer = threading.Thread(target=kill, daemon=True)
killer.start()
run_study(load_study(sys.argv[1]), folder, engine=RayEngine(cluster.address))
killer.join()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The file of a study, and the folder in which it was run on this machine."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(STUDY)
    assert main(["study", str(folder / "study.yaml"), "--out", str(folder / "local"), "--cores", "2"]) == 0
    return folder


def test_status_tells_every_job(study, capsys):
    assert main(["study", "status", str(study / "local"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"done": 2}
    assert [(job["job"], job["epochs"], job["attempts"]) for job in found["jobs"]] == [
        ("train-seed=0", 12, 1),
        ("train-seed=1", 12, 1),
    ]
    assert read_json(study / "local/jobs/train-seed=0/environment.json")["command"].startswith("dnas retrain")
    assert main(["study", "status", str(study / "local/jobs")]) == 2
    assert "no study there" in capsys.readouterr().err


def test_a_ray_cluster_that_loses_a_node_gives_the_same_results(study, tmp_path):
    """Over 10 s: starts Ray, trains two networks, and repeats one of them after the death of its node is noticed."""
    pytest.importorskip("ray", reason="needs Ray")
    out = tmp_path / "ray"
    command = [sys.executable, "-W", "ignore", "-c", KILL_A_NODE, str(study / "study.yaml"), str(out)]
    subprocess.run(command, check=True, timeout=300)
    tries = {seed: attempts(out / f"jobs/train-seed={seed}") for seed in (0, 1)}
    assert sorted(tries.values()) == [1, 2]
    for seed in (0, 1):
        for name in ("last.safetensors", "best.safetensors"):
            path = Path(f"jobs/train-seed={seed}") / name
            assert (out / path).read_bytes() == (study / "local" / path).read_bytes()


def attempts(folder):
    return sum("started" in line.record for line in read_lines(folder / "attempts.jsonl", "attempts"))
