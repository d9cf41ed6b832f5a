"""Provenance of a latency table: everything that must be equal for two latencies to be comparable."""

from __future__ import annotations

import dataclasses
import platform
import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import torch

from dnas.config import config
from dnas.environment import package_versions, source_commit, utc_now
from dnas.latency.backends import find_backend
from dnas.latency.device import DeviceInfo, conditions, describe_device, driver_version
from dnas.latency.setup import MeasurementSetup
from dnas.latency.statistics import Effort

CPU_CAPABILITY = "cpu_capability"
"""The entry of ``software`` with the vector instructions that PyTorch uses, such as AVX512."""


@config
class Provenance:
    """The data recorded with every table.

    ``input_size`` is (height, width) of the images that the space's inventory is for, ``batch`` their number.
    ``effort`` holds the settings of :class:`dnas.latency.statistics.Effort`, ``software`` versions by name, ``before``
    and ``after`` the state of the device before and after measuring. A build may take several sessions: ``sittings`` is
    their number, ``seconds`` their total duration. ``cache`` is ``warm`` (a module is called repeatedly, so its weights
    and inputs are in the caches) or ``cold`` (the last-level cache is emptied before each call). ``commit`` is that of
    a source checkout of dnas, null for an installed package. ``space`` and ``command`` contain no folders of the
    machine that measured: see :func:`portable_command`.
    """

    space: str
    input_size: tuple[int, int]
    device: DeviceInfo
    backend: str
    precision: str
    memory_format: str
    threads: int
    batch: int
    cache: str = "warm"
    tf32: bool = False
    cudnn_benchmark: bool = True
    effort: dict[str, float]
    software: dict[str, str]
    commit: str | None = None
    command: str | None = None
    date: str
    seconds: float
    sittings: int = 0
    before: dict[str, str]
    after: dict[str, str]
    notes: str = ""


def start_provenance(
    setup: MeasurementSetup,
    effort: Effort,
    *,
    space: str,
    input_size: tuple[int, int],
    command: str | None,
    devices: Sequence[torch.device] = (),
) -> Provenance:
    """The provenance of a build that starts now; :func:`finish_provenance` completes it.

    Folders of this machine in ``space`` and ``command`` are dropped. ``devices`` are those that share the work, by
    default only that of ``setup``.
    """
    state = _conditions(devices or (setup.device,))
    return Provenance(
        space=_portable_word(space),
        input_size=input_size,
        device=describe_device(setup.device),
        backend=setup.backend,
        precision=setup.precision,
        memory_format=setup.memory_format,
        threads=setup.threads,
        batch=setup.batch,
        cache=setup.cache,
        tf32=setup.precision == "tf32",
        effort={name: float(value) for name, value in dataclasses.asdict(effort).items()},
        software=software_versions(setup.device) | find_backend(setup).versions(),
        commit=source_commit(),
        command=None if command is None else portable_command(command),
        date=utc_now(),
        seconds=0.0,
        before=state,
        after=state,
    )


def finish_provenance(
    provenance: Provenance, devices: Sequence[torch.device], *, seconds: float, sittings: int
) -> Provenance:
    """``provenance`` after ``sittings`` more sessions of ``seconds`` in total, with current date and device state."""
    return dataclasses.replace(
        provenance,
        date=utc_now(),
        after=_conditions(devices),
        seconds=round(provenance.seconds + seconds, 3),
        sittings=provenance.sittings + sittings,
    )


def _conditions(devices: Sequence[torch.device]) -> dict[str, str]:
    """The state of a device; for several devices each name is prefixed by the device."""
    if len(set(devices)) == 1:
        return conditions(devices[0])
    return {f"{device} {name}": value for device in devices for name, value in conditions(device).items()}


def differences(one: Provenance, other: Provenance) -> list[str]:
    """The differences that exclude latencies of ``one`` and ``other`` from one table, as ``name: value and value``."""
    names = (
        "input_size",
        "backend",
        "precision",
        "memory_format",
        "threads",
        "batch",
        "cache",
        "tf32",
        "cudnn_benchmark",
    )
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in names}
    for name in ("type", "name", "cores", "compute_capability"):
        pairs[f"device {name}"] = (getattr(one.device, name), getattr(other.device, name))
    for name in ("torch", "cuda", "cudnn", "driver", "onnxruntime", "openvino", "tensorrt"):
        pairs[name] = (one.software.get(name), other.software.get(name))
    # Not every table has these.
    hidden = {
        "device model": (one.device.model, other.device.model),
        CPU_CAPABILITY: (one.software.get(CPU_CAPABILITY), other.software.get(CPU_CAPABILITY)),
    }
    pairs |= {name: pair for name, pair in hidden.items() if None not in pair}
    for name in sorted({*one.effort, *other.effort}):
        pairs[name] = (one.effort.get(name), other.effort.get(name))
    return [f"{name}: {first} and {second}" for name, (first, second) in pairs.items() if first != second]


def portable_command(command: str) -> str:
    """``command`` without folders of this machine: absolute paths and paths with ``..`` become bare names.

    Tables are shared, and the folders of a user are private and of no use to others.
    """
    return shlex.join(_portable_word(word) for word in command_words(command))


def _portable_word(word: str) -> str:
    key, equals, value = word.rpartition("=")
    parts = PurePath(value).parts
    outside = PurePath(value).is_absolute() or value.startswith("~") or ".." in parts
    return f"{key}{equals}{PurePath(value).name or value}" if outside else word


def software_versions(device: torch.device) -> dict[str, str]:
    """Versions by name of the software that the speed of a module depends on."""
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    found: dict[str, object] = {
        **package_versions(),
        "system": platform.platform(),
    }
    if device.type == "cuda":
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version(),
            "driver": driver_version(device),
        }
    elif mkldnn.is_available():
        found[CPU_CAPABILITY] = torch.backends.cpu.get_cpu_capability()
    return {name: str(value) for name, value in found.items() if value is not None}


def command_words(command: str) -> list[str]:
    """The words of a shell command; parted at white space if its quotes are not balanced."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()
