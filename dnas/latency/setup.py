"""How latencies are measured: device, backend, precision, memory format, threads, batch, caches."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.latency.cache import CACHES, cache_flush
from dnas.latency.statistics import DeviceRun, HostStopwatch, Run, Stopwatch, flush_seconds

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
MEMORY_FORMATS = ("contiguous", "channels_last")
_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,
}


@dataclass(frozen=True, kw_only=True)
class MeasurementSetup:
    """The device and the settings that modules are measured with; :func:`make_setup` checks them."""

    device: torch.device
    backend: str
    precision: str
    memory_format: str
    threads: int
    batch: int
    cache: str = "warm"

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and inputs: TF32 is float32 in memory; for INT8 the backend quantises float32."""
        return _DTYPES[self.precision]

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of weights and inputs."""
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format

    def stopwatch(self) -> Stopwatch:
        """A stopwatch for the device: CUDA events, or the host's clock elsewhere. It empties the caches if ``cold``."""
        flush = cache_flush(self.device, self.threads) if self.cache == "cold" else None
        if self.device.type == "cuda":
            return CudaStopwatch(self.device, flush)
        if self.device.type == "mps":
            return HostStopwatch(time.perf_counter, torch.mps.synchronize, flush)
        return HostStopwatch(time.perf_counter, flush=flush)


def make_setup(
    device: str | torch.device,
    *,
    backend: str = "auto",
    precision: str = "fp32",
    channels_last: bool = False,
    threads: int | None = None,
    batch: int = 1,
    cache: str = "warm",
) -> MeasurementSetup:
    """A setup, checked against what this machine offers.

    Backend ``auto`` is ``cudagraph`` on CUDA, as an operator takes less time there than launching its kernels does,
    and ``eager`` elsewhere.
    ``threads`` is the number of CPU threads of one operator, None for torch's current setting. ``cache`` is ``warm``
    (a module is called repeatedly, so its weights and inputs are in the caches) or ``cold`` (the last-level cache is
    emptied before each call). Raises :class:`UserError` for an unknown or absent device, a precision that the device
    does not have, or a number out of range. The backend is checked by :func:`dnas.latency.backends.find_backend`.
    """
    found = resolve_device(device, mps=True)
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} is unknown, known: {', '.join(PRECISIONS)}")
    if precision == "tf32" and (found.type != "cuda" or torch.cuda.get_device_capability(found) < (8, 0)):
        raise UserError(f"precision tf32 needs an Nvidia GPU of compute capability 8.0 or newer, device is {found}")
    if precision == "fp16" and found.type == "cpu":
        raise UserError("precision fp16 is emulated on a CPU, so its latency is meaningless; use fp32 or bf16")
    most = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= most:
        raise UserError(f"threads: given {threads}, expected 1 to {most}, the cores of this machine")
    if batch < 1:
        raise UserError(f"batch: given {batch}, expected at least 1")
    if cache not in CACHES:
        raise UserError(f"cache {cache!r} is unknown, known: {', '.join(CACHES)}")
    if cache == "cold" and found.type == "mps":
        raise UserError("cache cold: available on cpu and cuda, device is mps; use warm")
    if backend == "auto":
        backend = "cudagraph" if found.type == "cuda" else "eager"
    return MeasurementSetup(
        device=found,
        backend=backend,
        precision=precision,
        memory_format="channels_last" if channels_last else "contiguous",
        threads=torch.get_num_threads() if threads is None else threads,
        batch=batch,
        cache=cache,
    )


@dataclass
class CudaStopwatch:
    """Times calls with CUDA events on the stream of the run, without the time that the host waits.

    Where the host enqueues more slowly than the device computes, events measure the host: :meth:`is_host_bound`. With
    ``flush``, which empties the L2 cache, every call is timed separately, right after a flush. The host enqueues the
    call while the device is flushing, which hides the launches as far as they take less time than the flush.
    """

    device: torch.device
    flush: Run | None = None
    _enqueuing_s: float = field(default=0.0, init=False)
    _running_s: float = field(default=0.0, init=False)

    @cached_property
    def untimed_s(self) -> float:
        """Duration of a flush in seconds, measured at the first access."""
        if self.flush is None:
            return 0.0
        return flush_seconds(time.perf_counter, lambda: torch.cuda.synchronize(self.device), self.flush)

    def time(self, run: Run, repetitions: int, meanwhile: Run | None = None) -> float:
        """Seconds that ``repetitions`` calls take on the device, after earlier work has finished."""
        stream = run.stream if isinstance(run, DeviceRun) else None
        with torch.cuda.device(self.device), torch.cuda.stream(stream) if stream is not None else nullcontext():
            torch.cuda.synchronize(self.device)
            began = time.perf_counter()
            if self.flush is None:
                pairs = [self._enclosed(run, repetitions)]
            else:
                pairs = []
                for _ in range(repetitions):
                    self.flush()
                    pairs.append(self._enclosed(run, 1))
            self._enqueuing_s = time.perf_counter() - began
            if meanwhile is not None:
                meanwhile()
            torch.cuda.synchronize(self.device)
            self._running_s = sum(float(start.elapsed_time(end)) for start, end in pairs) / 1e3
            return self._running_s

    def is_host_bound(self) -> bool:
        """Whether the host needed as long to enqueue the calls as the device to run them; unknown after flushes."""
        return self.flush is None and self._enqueuing_s >= 0.9 * self._running_s

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
def pinned(setup: MeasurementSetup) -> Iterator[None]:
    """Apply ``setup`` to torch's global settings, enable inference mode, and restore everything at the end.

    Float32 is true float32 unless the precision is tf32. cuDNN searches for its fastest algorithm, as it would for a
    deployed network of fixed input size. TF32 is set by torch's older switches: torch.export, which the compiled
    backend uses, fails once the newer ``fp32_precision`` has been set (torch 2.15).
    """
    reduced = setup.precision == "tf32"
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("high" if reduced else "highest")
        _set(stack, torch.backends.cudnn, "allow_tf32", reduced)
        _set(stack, torch.backends.cudnn, "benchmark", True)
        threads = torch.get_num_threads()
        if threads != setup.threads:
            torch.set_num_threads(setup.threads)
            stack.callback(torch.set_num_threads, threads)
        if setup.device.type == "cuda":
            stack.enter_context(torch.cuda.device(setup.device))
        stack.enter_context(torch.inference_mode())
        yield


def _set(stack: ExitStack, holder: Any, name: str, value: object) -> None:
    stack.callback(setattr, holder, name, getattr(holder, name))
    setattr(holder, name, value)
