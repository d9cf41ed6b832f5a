from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

# Set before torch is imported, also for commands that tests start: several test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more would leave threads and processes that never end

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 3.0

# Processes that Python starts once per process and keeps, by a word of their command line.
KEPT_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def pytest_configure() -> None:
    torch.set_num_threads(1)
    # No deadline, as the machine may be busy; the other settings are those of the active profile.
    hypothesis.settings.register_profile("dnas", deadline=None)
    hypothesis.settings.load_profile("dnas")


def pytest_collection_finish() -> None:
    """Take modules and collected tests out of every garbage collection that follows.

    A search and a training each collect when they end, which takes half a second while these are visited.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with papers and images next to the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder}")
    return folder


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """A test that leaves a thread, a child process, an open file or a changed global switch behind fails."""
    switches, held = _switches(), _held()
    yield
    assert _switches() == switches
    deadline = time.monotonic() + PATIENCE_S
    while left := [text for key, text in _held().items() if key not in held]:
        gc.collect()
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {', '.join(left)}")
        time.sleep(0.01)


def _held() -> dict[tuple[str, object], str]:
    """Threads, child processes and open files of this process, each with a description."""
    return {**_threads(), **_children(), **_open_files()}


def _switches() -> dict[str, object]:
    """Global state that a test must restore."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    return {
        "folder": Path.cwd(),
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "open figures": pyplot.get_fignums() if pyplot else [],
    }


def _threads() -> dict[tuple[str, object], str]:
    """Running threads, without the monitor thread of tqdm, which the ONNX exporter starts once."""
    running = [thread for thread in threading.enumerate() if thread.name != "tqdm_monitor"]
    return {("thread", thread.ident): f"thread {thread.name}" for thread in running}


def _children() -> dict[tuple[str, object], str]:
    """Child processes, including zombies; none if the system does not list them."""
    found: dict[tuple[str, object], str] = {}
    for listing in Path("/proc/self/task").glob("*/children"):
        for pid in _read(listing).split():
            command = _read(Path("/proc") / pid / "cmdline").replace("\0", " ").strip()
            if not any(word in command for word in KEPT_PROCESSES):
                found["process", pid] = f"process {pid} ({command or 'ended, not waited for'})"
    return found


def _open_files() -> dict[tuple[str, object], str]:
    """Open regular files, without those of installed packages and of the system."""
    found: dict[tuple[str, object], str] = {}
    for link in Path("/proc/self/fd").glob("*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        # ONNX Runtime opens a database in the user's cache when it is first loaded, and keeps it open.
        if ".onnxruntime/" in target:
            continue
        if target.startswith("/") and not target.startswith(("/dev/", "/proc/", "/sys/", sys.prefix, sys.base_prefix)):
            found["file", target] = f"open file {target}"
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
