"""Properties and state of a device: name, memory, driver, clocks, temperature, throttling."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dnas.config import config
from dnas.device import cpu_model, device_name

_THROTTLE_REASONS = {
    "HwSlowdown": "hardware slowdown",
    "HwThermalSlowdown": "hardware, too hot",
    "HwPowerBrakeSlowdown": "hardware, power brake",
    "SwThermalSlowdown": "software, too hot",
    "SwPowerCap": "software, power cap",
}
NO_NVML = "unknown: nvidia-ml-py is not installed"


@config
class DeviceInfo:
    """The device of a table. ``compute_capability`` is given for CUDA devices, ``cores`` for the others.

    ``model``: of an x86 CPU, see :func:`dnas.device.cpu_model`; tables of earlier versions do not have it.
    """

    type: str
    name: str
    memory_bytes: int
    cores: int | None = None
    compute_capability: str | None = None
    model: str | None = None


def describe_device(device: torch.device) -> DeviceInfo:
    """Name and size of a device of this machine."""
    name = device_name(device)
    if device.type != "cuda":
        model = cpu_model() if device.type == "cpu" else None
        return DeviceInfo(type=device.type, name=name, memory_bytes=_host_memory(), cores=os.cpu_count(), model=model)
    found = torch.cuda.get_device_properties(device)
    return DeviceInfo(
        type="cuda",
        name=name,
        memory_bytes=found.total_memory,
        compute_capability=f"{found.major}.{found.minor}",
    )


def conditions(device: torch.device) -> dict[str, str]:
    """The current state of the device as texts by name; values that cannot be read are omitted.

    Of a GPU without NVML, ``throttle_reasons`` says so: rounds with throttled clocks cannot be recognised.
    """
    return _gpu_conditions(device) if device.type == "cuda" else _cpu_conditions()


def throttle_probe(device: torch.device) -> Callable[[], bool]:
    """A function that returns whether the device throttles its clocks now, for heat or power; False if unknown."""
    handle = _nvml_handle(device) if device.type == "cuda" else None
    if handle is None:
        return lambda: False
    return lambda: bool(_throttle_reasons(*handle))


def driver_version(device: torch.device) -> str | None:
    """Version of the Nvidia driver, None without NVML."""
    handle = _nvml_handle(device) if device.type == "cuda" else None
    if handle is None:
        return None
    nvml, _ = handle
    return str(nvml.nvmlSystemGetDriverVersion())


def _host_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _cpu_conditions() -> dict[str, str]:
    found = {}
    clocks = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("cpu MHz")]
    if clocks:
        found["clocks_mhz"] = " ".join(clocks[:16])
    frequency = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    for name in ("scaling_governor", "scaling_max_freq", "scaling_cur_freq"):
        for line in _lines(frequency / name)[:1]:
            found[name] = line.strip()
    for line in _lines("/sys/class/thermal/thermal_zone0/temp")[:1]:
        if line.strip().isdigit():
            found["temperature_c"] = f"{int(line) / 1000:.1f}"
    if hasattr(os, "getloadavg"):
        found["load_average"] = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return found


def _gpu_conditions(device: torch.device) -> dict[str, str]:
    handle = _nvml_handle(device)
    if handle is None:
        return {"throttle_reasons": NO_NVML}
    nvml, gpu = handle
    questions: dict[str, Callable[[], object]] = {
        "clock_sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "clock_memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
        "throttle_reasons": lambda: ", ".join(_throttle_reasons(nvml, gpu)) or "none",
    }

    def answer(ask: Callable[[], object]) -> object:
        try:
            return ask()
        except nvml.NVMLError:
            return None

    answers = {name: answer(ask) for name, ask in questions.items()}
    return {name: str(value) for name, value in answers.items() if value is not None}


def _throttle_reasons(nvml: Any, gpu: Any) -> list[str]:
    try:
        bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
    except nvml.NVMLError:
        return []
    names = {getattr(nvml, f"nvmlClocksThrottleReason{name}", 0): text for name, text in _THROTTLE_REASONS.items()}
    return [text for bit, text in names.items() if bits & bit]


def _nvml_handle(device: torch.device) -> tuple[Any, Any] | None:
    """The NVML module and its handle of a CUDA device, found by UUID: NVML and CUDA number devices differently."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return None


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
