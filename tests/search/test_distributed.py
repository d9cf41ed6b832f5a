"""Two processes give the same result as one with the total batch, and a failure of one ends both."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnas.files import dump_yaml
from dnas.runs import RunFolder

SCRIPT = '''
import gc
import os
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, sys.argv[1])
from conftest import make_config, make_data, make_joint_config, make_problem, make_rate_problem, run_search

from dnas.training import end_processes
from search_spaces.fasterseg import CoSearch

torch.set_num_threads(1)
gc.freeze()  # each search collects at its end
root, ports = Path(sys.argv[2]), sys.argv[3:]


def freeze(problem):
    """Let BatchNorms use their initial running statistics: batch statistics would differ between processes."""
    for module in problem.weights.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: nn.Module.train(module, False)
    return problem


# No OHEM: a mean over hard pixels is not the mean of two such means. Validation after the last epoch only.
common = {"ohem_threshold": None, "validate_every": 9, "gradient_clipping": 1.0}


def bilevel(name, batch_size, **options):
    config = make_config(batch_size=batch_size, pretrain_epochs=1, search_epochs=2, **{**common, **options})
    run_search(root / name, config, problem=freeze(make_problem(config)), data=make_data(train=16))


def unclipped(name, batch_size):
    """Gradients are accumulated in the momenta."""
    bilevel(name, batch_size, gradient_clipping=None)


def joint(name, batch_size):
    config = make_joint_config(batch_size=batch_size, epochs=2, architecture_learning_rate=500.0, **common)
    run_search(root / name, config, problem=freeze(make_rate_problem()), data=make_data(train=8, size=(64, 64)))


def forked(work, **environment):
    pid = os.fork()
    if pid == 0:
        try:
            os.environ.update(environment)
            work()
            end_processes()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def wait(*pids):
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)


for number, search in enumerate((bilevel, unclipped, joint)):
    wait(forked(lambda: search(f"{search.__name__}_alone", 4)))
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    meeting["MASTER_PORT"] = ports[number]
    wait(
        *(
            forked(lambda: search(f"{search.__name__}_together", 2), RANK=rank, LOCAL_RANK=rank, **meeting)
            for rank in ("0", "1")
        )
    )
'''


def free_ports(count):
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def child_environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs ``KIND_alone`` and ``KIND_together`` of the three kinds of search."""
    path = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(path), *map(str, free_ports(3))]
    ended = subprocess.run(command, capture_output=True, timeout=240, env=child_environment())
    assert ended.returncode == 0, ended.stderr.decode()
    return path


@pytest.mark.parametrize("search", ["bilevel", "unclipped", "joint"])
def test_two_processes_are_one_with_the_total_batch(runs, search):
    alone, together = (RunFolder.open(runs / f"{search}_{name}") for name in ("alone", "together"))
    expected, found = (run.load_weights("architecture") for run in (alone, together))
    assert expected.keys() == found.keys()
    for name, table in expected.items():
        assert torch.allclose(found[name], table, rtol=1e-5, atol=1e-6), name
    expected, found = (run.load_state()["weights"] for run in (alone, together))
    for name, value in expected.items():
        if "running" not in name and "num_batches" not in name:  # recalibrated for the validation
            assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("search", ["bilevel", "unclipped", "joint"])
def test_the_parameters_have_moved(runs, search):
    """Otherwise the comparison above would only compare initial values."""
    run = RunFolder.open(runs / f"{search}_together")
    if search == "joint":
        assert max(rate.item() for rate in run.load_weights("architecture").values()) > 1.001
    else:
        assert max(table.abs().max().item() for table in run.load_weights("architecture").values()) > 0.05


@pytest.mark.parametrize("search", ["bilevel", "unclipped", "joint"])
def test_one_process_writes(runs, search):
    alone, together = (RunFolder.open(runs / f"{search}_{name}") for name in ("alone", "together"))
    steps = [(record["kind"], record["epoch"], record.get("step")) for record in together.records()]
    assert steps == [(record["kind"], record["epoch"], record.get("step")) for record in alone.records()]
    assert sorted(path.name for path in together.path.iterdir()) == sorted(path.name for path in alone.path.iterdir())


def test_the_failure_of_one_process_ends_all_with_its_message(tmp_path):
    """A corrupt image is read by only one of the two processes; the other one waits for it and has to be ended."""
    for split, count in (("train", 4), ("val", 1)):
        for index in range(count):
            for kind in ("images", "masks"):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
                picture = np.full((64, 64, 3) if kind == "images" else (64, 64), index % 2, np.uint8)
                Image.fromarray(picture).save(tmp_path / split / kind / f"{index}.png")
    classes = [{"name": name, "colour": [number, 0, 0]} for number, name in enumerate(("sky", "road"))]
    (tmp_path / "classes.yaml").write_text(dump_yaml({"classes": classes}))
    broken = tmp_path / "train" / "images" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    space = {
        "space": "regseg",
        "task": {"input_size": [64, 64], "num_classes": 2},
        "network": {"name": "regseg_small", "options": {"rates": [[1, 1]], "width": 32, "split_equal": True}},
        "rates": {"layers": "backbone.blocks.*.branches.*", "upper": 4},
        "search": {"epochs": 50, "batch_size": 1, "augmentation": {"crop": [64, 64]}},
    }
    (tmp_path / "space.yaml").write_text(dump_yaml(space))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_ports(1)[0]}"]
    command += ["-m", "dnas", "search", str(tmp_path / "space.yaml"), "--data", f"folder:{tmp_path}", "--device", "cpu"]
    command += ["--out", str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, timeout=120, env=child_environment(), text=True)
    assert ended.returncode != 0
    messages = [line for line in ended.stderr.splitlines() if line.startswith("dnas: ")]
    assert messages
    assert all("2.png" in line for line in messages)
    assert "SIGKILL" not in ended.stderr  # torchrun kills, after 30 seconds, what does not end by SIGTERM
