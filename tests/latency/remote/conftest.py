"""A bundle of three small operators, a second Python environment without torch, and an ssh server on this machine."""

import importlib.util
import os
import shutil
import socket
import subprocess
import time
import venv
from pathlib import Path

import pytest
from torch import nn

from dnas.latency import Effort, OperatorSpec
from dnas.latency.remote import write_bundle
from dnas.latency.spec import InventoryItem

EFFORT = Effort(rounds=2, time_per_entry=0.002, warm_up_s=0, extra_rounds=0)


class Join(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 1)

    def forward(self, fine, coarse):
        return nn.functional.relu(self.convolution(fine) + coarse)


def conv():
    return nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())


def items():
    shape = (4, 8, 16)
    return [
        InventoryItem(OperatorSpec("conv", (shape,), 6, 2), conv),
        InventoryItem(OperatorSpec("join", (shape, shape), 4, 1), Join),
        InventoryItem(OperatorSpec("skip", (shape,), 4, 1), lambda: nn.Conv2d(4, 4, 1)),
    ]


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """``written(precision, file_format)``: a bundle that is written once."""
    folder, done = tmp_path_factory.mktemp("bundles"), {}

    def write(precision, file_format="onnx"):
        chosen = precision, file_format
        if chosen not in done:
            done[chosen] = folder / "_".join(chosen)
            options = {"space": "small", "input_size": (64, 128), "precision": precision, "effort": EFFORT}
            command = "dnas latency bundle small --out bundle"
            write_bundle(items(), done[chosen], command=command, file_format=file_format, **options)
        return done[chosen]

    return write


@pytest.fixture
def bundle(written, tmp_path):
    """A copy of the float32 bundle, without results."""
    return shutil.copytree(written("fp32"), tmp_path / "bundle")


@pytest.fixture(scope="session")
def other_python(tmp_path_factory):
    """The Python of an environment that holds numpy and onnxruntime, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for name in ("numpy", "onnxruntime"):
        source = Path(importlib.util.find_spec(name).origin).parent
        for path in (source, source.with_name(f"{name}.libs")):
            if path.exists():
                (packages / path.name).symlink_to(path)
    python = folder / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import onnxruntime\nimport torch"], capture_output=True, text=True, check=False
    )
    assert "No module named 'torch'" in found.stderr, found.stderr
    return python


@pytest.fixture(scope="module")
def ssh_server(tmp_path_factory):
    """Port and ssh command of a server on this machine whose sessions have a home folder of their own."""
    sshd, keygen = shutil.which("sshd") or shutil.which("/usr/sbin/sshd"), shutil.which("ssh-keygen")
    if sshd is None or keygen is None or shutil.which("ssh") is None:
        pytest.skip("needs sshd, ssh and ssh-keygen")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "home").mkdir()
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder / 'host'}",
        f"AuthorizedKeysFile {folder / 'user'}.pub",
        "StrictModes no",
        "PasswordAuthentication no",
        "PidFile none",
        f"SetEnv HOME={folder / 'home'}",
    ]
    (folder / "config").write_text("\n".join(lines) + "\n")
    separation = Path("/run/sshd")  # which sshd needs when root starts it
    made = os.geteuid() == 0 and not separation.exists()
    if made:
        separation.mkdir(mode=0o755)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([sshd, "-D", "-e", "-f", folder / "config"], stderr=log)
    options = f"-F /dev/null -i {folder / 'user'} -o StrictHostKeyChecking=no -o UserKnownHostsFile={folder / 'known'}"
    try:
        _wait_for(port, server, folder / "log")
        yield port, f"ssh -q {options}", folder / "home"
    finally:
        server.terminate()
        server.wait()
        if made:
            separation.rmdir()


def _wait_for(port, server, log):
    for _ in range(100):
        if server.poll() is not None:
            pytest.skip(f"sshd does not start: {log.read_text().strip()[:200]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.skip("sshd does not answer")
