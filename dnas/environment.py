"""The environment of a result: process, versions, commit, device."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import dnas
from dnas.device import device_name, resolve_device


def process_rank() -> int:
    """The rank of this process among those that torchrun started; 0 for a process that was started alone."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def process_count() -> int:
    """The number of processes that torchrun started together with this one; 1 for a process that was started alone."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() else 1


def local_process_count() -> int:
    """The number of processes that torchrun started on this machine; 1 for a process that was started alone."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(text)) if text.isdecimal() else 1


def utc_now() -> str:
    """The current time as ISO 8601 text in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def package_versions() -> dict[str, str]:
    """Versions by name: dnas, Python and the numerical packages."""
    return {
        "dnas": dnas.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": metadata.version("torchvision"),  # importing it takes a second
        "numpy": metadata.version("numpy"),
    }


def source_commit() -> str | None:
    """The commit of the checkout that dnas is imported from, with ``-dirty`` for local changes; None outside of one.

    A virtual environment may lie inside an unrelated checkout, so the package itself must be tracked there.
    """
    package = Path(dnas.__file__).parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None


def describe_environment(device: str | torch.device | None = None) -> dict[str, Any]:
    """Everything besides its configuration that a result may depend on, as plain values for JSON.

    ``device`` is anything that :func:`dnas.device.resolve_device` takes.
    """
    found = resolve_device(device)
    # Virtual machines give CPUs with other instructions, which round in another way, the same name.
    instructions = {"cpu_capability": torch.backends.cpu.get_cpu_capability()} if found.type == "cpu" else {}
    return {
        "date": utc_now(),
        "command": shlex.join(sys.argv),
        "device": device_name(found),
        **instructions,
        "platform": platform.platform(),
        **package_versions(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "git_commit": source_commit(),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git, or None if it fails or is not installed."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode(errors="replace").strip()
