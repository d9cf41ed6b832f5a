"""The devices of this machine: resolving what the user asked for, and their names."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from dnas.errors import UserError


def resolve_device(device: str | torch.device | None = None, *, mps: bool = False) -> torch.device:
    """The device for ``auto`` (or None), ``cpu``, ``cuda`` or ``cuda:N``, and for ``mps`` where the caller supports it.

    ``auto`` is the current GPU if there is one, else the CPU. A CUDA device always has an index. Raises
    :class:`UserError` for an unknown name and for a device that this machine does not have.
    """
    if device is None or device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda", *["mps"] * mps):
        expected = "auto, cpu, cuda, cuda:N or mps" if mps else "auto, cpu, cuda or cuda:N"
        raise UserError(f"device {str(device)!r}: expected {expected}")
    if found.type == "cuda":
        return _cuda_device(found)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps: this machine has no usable Apple GPU; use cpu")
    return torch.device(found.type)


def resolve_devices(text: str, *, mps: bool = False) -> tuple[torch.device, ...]:
    """One device as :func:`resolve_device` takes it, or several GPUs: ``cuda:0,1`` or ``cuda:all``.

    Raises :class:`UserError` as :func:`resolve_device` does, and for a GPU that is named twice.
    """
    kind, _, indices = text.partition(":")
    if kind != "cuda" or ("," not in indices and indices != "all"):
        return (resolve_device(text, mps=mps),)
    if indices == "all":
        resolve_device("cuda")  # raises if there is none
        return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    names = [f"cuda:{index.strip()}" for index in indices.split(",")]
    if len(set(names)) != len(names):
        raise UserError(f"device {text!r}: names a GPU twice; name each once, or use cuda:all")
    return tuple(resolve_device(name) for name in names)


def device_name(device: torch.device) -> str:
    """The model of a device of this machine, such as ``NVIDIA H100 80GB HBM3``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_name() if device.type == "cpu" else f"Apple GPU of {_cpu_name()}"


def _cuda_device(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index: int | None = device.index  # which torch declares as never None
    if index is None:
        index = torch.cuda.current_device() if count else 0
    if index >= count:
        raise UserError(f"device {str(device)!r}: PyTorch finds {count} usable CUDA devices; use cpu or another one")
    return torch.device("cuda", index)


def cpu_model() -> str | None:
    """Vendor, family and model number of an x86 CPU; None for another one.

    A virtual machine may give all CPUs of a maker one name.
    """
    fields = _cpu_fields()
    found = [fields[name] for name in ("vendor_id", "cpu family", "model") if name in fields]
    return " ".join(found) if len(found) == 3 else None


def _cpu_name() -> str:
    return _cpu_fields().get("model name") or platform.processor() or platform.machine() or "unknown CPU"


def _cpu_fields() -> dict[str, str]:
    """What Linux says of the first CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if value.strip():
            found.setdefault(name.strip(), value.strip())
    return found
