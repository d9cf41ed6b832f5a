"""Where and with what a run was made: versions, device, commit, command line."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import torch
import torchvision

import dnas


def process_rank() -> int:
    """The number of this process among those that torchrun started together; 0 for a process that is alone."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def describe_device(device: str | torch.device | None = None) -> str:
    """The name of a device: that of the GPU for a CUDA device, that of the processor otherwise.

    Without an argument it is the GPU where there is one.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    return _processor_name()


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() in ("model name", "hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the checkout that holds this package, with ``-dirty`` for local changes; None outside a checkout.

    A virtual environment may lie inside an unrelated checkout, so the package's own file must be tracked there.
    """
    package = Path(dnas.__file__).parent
    git = ["git", "-C", str(package)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, timeout=10)
        if tracked.returncode != 0:
            return None
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        commit = subprocess.run(describe, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.decode(errors="replace").strip() or None if commit.returncode == 0 else None


def describe_environment(device: str | torch.device | None = None) -> dict[str, Any]:
    """Everything about this process that a result may depend on, as plain values ready for JSON."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "device": describe_device(device),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": str(numpy.__version__),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "dnas": dnas.__version__,
        "git_commit": _git_commit(),
    }
