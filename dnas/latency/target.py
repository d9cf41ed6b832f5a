"""What a latency is measured on and how: device, backend, precision, memory format, threads, batch, caches."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from dnas.errors import UserError
from dnas.latency.cache import CACHES, cache_flush
from dnas.latency.statistics import HostStopwatch, Run, Stopwatch, flush_seconds

DEVICES = ("cpu", "cuda", "mps")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
MEMORY_FORMATS = ("contiguous", "channels_last")
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where and how modules run while they are measured; :func:`make_target` checks the values."""

    device: torch.device
    backend: str
    precision: str
    memory_format: str
    threads: int
    batch: int
    cache: str = "warm"

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and inputs; TF32 is float32 in memory."""
        return _DTYPES[self.precision]

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of weights and inputs."""
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format

    def stopwatch(self) -> Stopwatch:
        """The clock of the device: events on CUDA, the host's clock elsewhere; before each call, caches as wanted."""
        flush = cache_flush(self.device, self.threads) if self.cache == "cold" else None
        if self.device.type == "cuda":
            return CudaStopwatch(self.device, flush)
        if self.device.type == "mps":
            return HostStopwatch(time.perf_counter, torch.mps.synchronize, flush)
        return HostStopwatch(time.perf_counter, flush=flush)


def make_target(
    device: str | torch.device,
    *,
    backend: str = "eager",
    precision: str = "fp32",
    channels_last: bool = False,
    threads: int | None = None,
    batch: int = 1,
    cache: str = "warm",
) -> Target:
    """Check a choice of device, precision and threads against this machine.

    ``threads`` is the number of CPU threads of one operator, ``None`` for torch's present setting. ``cache`` is
    ``warm`` (a module is called again and again, its weights and input lie in the caches) or ``cold`` (the last-level
    cache is emptied before each call). Raises :class:`UserError` for an unknown or absent device, a precision the
    device lacks, or a number out of range. The backend's name is checked by
    :func:`dnas.latency.backends.find_backend`.
    """
    found = resolve_device(device)
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} is unknown, known: {', '.join(PRECISIONS)}")
    if precision == "tf32" and (found.type != "cuda" or torch.cuda.get_device_capability(found) < (8, 0)):
        raise UserError(f"precision tf32 needs an Nvidia GPU of compute capability 8.0 or newer, device is {found}")
    if precision == "fp16" and found.type == "cpu":
        raise UserError("precision fp16 is emulated on a CPU and its latency means nothing; use fp32 or bf16")
    most = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= most:
        raise UserError(f"threads: given {threads}, expected 1 to {most}, the cores of this machine")
    if batch < 1:
        raise UserError(f"batch: given {batch}, expected at least 1")
    if cache not in CACHES:
        raise UserError(f"cache {cache!r} is unknown, known: {', '.join(CACHES)}")
    if cache == "cold" and found.type == "mps":
        raise UserError("cache cold: is offered on cpu and cuda, device is mps; use warm")
    return Target(
        device=found,
        backend=backend,
        precision=precision,
        memory_format="channels_last" if channels_last else "contiguous",
        threads=torch.get_num_threads() if threads is None else threads,
        batch=batch,
        cache=cache,
    )


def resolve_devices(text: str) -> tuple[torch.device, ...]:
    """One device by name, or several GPUs of this machine: ``cuda:0,1``, ``cuda:all``; none twice."""
    kind, _, indices = text.partition(":")
    if kind != "cuda" or ("," not in indices and indices != "all"):
        return (resolve_device(text),)
    if indices == "all":
        resolve_device("cuda")  # says so when there is none
        return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    names = [f"cuda:{index.strip()}" for index in indices.split(",")]
    if len(set(names)) != len(names):
        raise UserError(f"device {text!r}: names a GPU twice; name each once, or use cuda:all")
    return tuple(resolve_device(name) for name in names)


def resolve_device(device: str | torch.device) -> torch.device:
    """A device of this machine by name (``cpu``, ``cuda``, ``cuda:1``, ``mps``); an index is always given for CUDA."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r} is unknown, known: {', '.join(DEVICES)}") from None
    if found.type not in DEVICES:
        raise UserError(f"device {str(device)!r} is not supported, known: {', '.join(DEVICES)}")
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = found.index if found.index is not None else (torch.cuda.current_device() if count else 0)
        if index >= count:
            raise UserError(f"device {device}: this machine has {count} usable CUDA devices; use --device cpu")
        return torch.device("cuda", index)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps: this machine has no usable Apple GPU; use --device cpu")
    return torch.device(found.type)


@dataclass(frozen=True)
class CudaStopwatch:
    """CUDA events around the calls: time on the device, without the host's wait for it.

    With ``flush``, which empties the L2 cache, events stand around every single call, right after a flush. The host
    queues the call while the device still flushes, so what the launches cost the host is hidden then.
    """

    device: torch.device
    flush: Run | None = None

    @cached_property
    def untimed_s(self) -> float:
        """Seconds of a flush, measured at the first question."""
        if self.flush is None:
            return 0.0
        return flush_seconds(time.perf_counter, lambda: torch.cuda.synchronize(self.device), self.flush)

    def time(self, run: Run, repetitions: int) -> float:
        """Seconds on the device that ``repetitions`` calls take, after earlier work has finished."""
        with torch.cuda.device(self.device):
            torch.cuda.synchronize(self.device)
            if self.flush is None:
                pairs = [self._enclosed(run, repetitions)]
            else:
                pairs = []
                for _ in range(repetitions):
                    self.flush()
                    pairs.append(self._enclosed(run, 1))
            torch.cuda.synchronize(self.device)
            return sum(float(start.elapsed_time(end)) for start, end in pairs) / 1e3

    def _enclosed(self, run: Run, repetitions: int) -> tuple[Any, Any]:
        """Queue the calls between two events."""
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        for _ in range(repetitions):
            run()
        end.record()
        return start, end


@contextmanager
def pinned(target: Target) -> Iterator[None]:
    """Put torch's global switches where ``target`` says, run in inference mode, and put everything back after.

    Float32 is kept true float32 unless the precision is tf32. cuDNN searches for its fastest algorithm, as a deployed
    network of fixed input size does. TF32 goes through torch's older switches: torch.export, which compiled modules
    pass through, fails after the newer ``fp32_precision`` ones have been touched (torch 2.15).
    """
    reduced = target.precision == "tf32"
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("high" if reduced else "highest")
        _set(stack, torch.backends.cudnn, "allow_tf32", reduced)
        _set(stack, torch.backends.cudnn, "benchmark", True)
        threads = torch.get_num_threads()
        if threads != target.threads:
            torch.set_num_threads(target.threads)
            stack.callback(torch.set_num_threads, threads)
        if target.device.type == "cuda":
            stack.enter_context(torch.cuda.device(target.device))
        stack.enter_context(torch.inference_mode())
        yield


def _set(stack: ExitStack, holder: Any, name: str, value: object) -> None:
    stack.callback(setattr, holder, name, getattr(holder, name))
    setattr(holder, name, value)
