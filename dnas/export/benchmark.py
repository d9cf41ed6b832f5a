"""Benchmark of a network or an exported file: latency, FPS, parameters, multiply-adds and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.export.memory import with_peak_memory
from dnas.export.opened import open_file
from dnas.input_channels import input_channels
from dnas.latency.backends import find_backend
from dnas.latency.measure import measure
from dnas.latency.setup import make_setup
from dnas.latency.statistics import Effort, Measurement
from dnas.profile import count_multiply_adds, count_parameters


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """The module to benchmark, its known properties, and the backend (``run_as``) for ``measure``."""

    module: nn.Module
    shape: tuple[int, int, int, int]
    run_as: str
    backend: str
    precision: str
    parameters: int | None
    multiply_adds: int | None
    file: str | None = None
    run_precision: str = "fp32"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return (self.shape[1], self.shape[2]) if self.channels_last else (self.shape[2], self.shape[3])


def benchmark(
    network: nn.Module | str | Path,
    input_size: tuple[int, int] | None = None,
    *,
    device: str | torch.device = "auto",
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    batch: int = 1,
    seconds: float = 3.0,
    trust: bool = False,
) -> dict[str, Any]:
    """Benchmark a network, or a file (``.onnx``, ``.pt2``, ``.engine``) in its runtime.

    A network needs ``input_size`` (height, width); ``backend`` is one of :data:`dnas.latency.BACKENDS`, by default
    cudagraph on CUDA and eager elsewhere. For a file, input size, backend and precision must match the file if they are
    given; one of dynamic size is measured at ``input_size``, by default the size that it was exported at. Timing takes
    about ``seconds``. ``trust`` allows to load a TensorRT engine, which contains code.

    The result can be written as JSON: ``latency_ms`` of one batch (median, p10, p90), ``fps`` (images per second),
    ``parameters``, ``multiply_adds`` (of one image; None if unknown for a file), ``input_size``, ``batch``, ``device``,
    ``backend``, ``precision``, ``threads``, ``peak_memory_mb`` and ``file``. Raises :class:`UserError` if this machine
    or the file does not support the settings, and for a file that could run code.
    """
    place = resolve_device(device, mps=True)

    def work(look: Callable[[], None]) -> tuple[_Subject, Measurement]:
        if isinstance(network, nn.Module):
            if input_size is None:
                raise UserError("a network has no fixed input size; give one, for example 512x1024")
            shape = (batch, input_channels(network), *input_size)
            subject = _of_network(network, shape, place, backend or "auto", precision or "fp32", threads)
        else:
            subject = _of_file(Path(network), input_size, place, backend, precision, threads, batch, trust)
        return subject, _measured(subject, place, threads, seconds, look)

    (subject, measurement), peak = with_peak_memory(place, work)
    return {
        "latency_ms": {"median": measurement.median, "p10": measurement.p10, "p90": measurement.p90},
        "fps": 1000 * subject.shape[0] / measurement.median,
        "parameters": subject.parameters,
        "multiply_adds": subject.multiply_adds,
        "input_size": list(subject.size),
        "batch": subject.shape[0],
        "device": str(place),
        "backend": subject.backend,
        "precision": subject.precision,
        "threads": torch.get_num_threads() if threads is None else threads,
        "peak_memory_mb": peak,
        "file": subject.file,
    }


def _of_network(
    network: nn.Module,
    shape: tuple[int, int, int, int],
    device: torch.device,
    backend: str,
    precision: str,
    threads: int | None,
) -> _Subject:
    # Fail early, before anything is counted or measured.
    setup = make_setup(device, backend=backend, precision=precision, threads=threads)
    find_backend(setup)
    return _Subject(
        module=network,
        shape=shape,
        run_as=setup.backend,
        backend=setup.backend,
        precision=precision,
        parameters=count_parameters(network),
        multiply_adds=count_multiply_adds(network, (shape[2], shape[3])),
        run_precision=precision,
    )


def _of_file(
    path: Path,
    input_size: tuple[int, int] | None,
    device: torch.device,
    backend: str | None,
    precision: str | None,
    threads: int | None,
    batch: int,
    trust: bool,
) -> _Subject:
    file = open_file(path, device=device, backend=backend, threads=threads, trust=trust)
    if precision is not None and precision != file.precision:
        raise UserError(f"{path}: was exported in {file.precision}, given precision {precision}; export it again")
    shape = file.input_shape(input_size, batch)
    return _Subject(
        module=file.module,
        shape=shape,
        run_as=file.run_as,
        backend=file.backend,
        precision=file.precision,
        parameters=file.parameters,
        multiply_adds=None if file.metadata is None or file.image_size is None else file.metadata.multiply_adds,
        file=str(path),
        dtype=file.dtype,
        channels_last=file.channels_last,
    )


def _measured(
    subject: _Subject, device: torch.device, threads: int | None, seconds: float, measured: Callable[[], None]
) -> Measurement:
    generator = torch.Generator().manual_seed(0)
    if subject.dtype == torch.uint8:
        images = torch.randint(0, 256, subject.shape, generator=generator, dtype=torch.uint8)
    else:
        images = torch.randn(subject.shape, generator=generator)
    try:
        return measure(
            subject.module,
            [images],
            device=device,
            backend=subject.run_as,
            precision=subject.run_precision,
            threads=threads,
            effort=Effort(time_per_entry=seconds, warm_up_s=0.1 * seconds),
            measured=measured,
        )
    except UserError:
        raise
    except Exception as error:
        if subject.file is None:
            raise
        # A foreign file can ask for anything: operators that do not fit, more memory than there is.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{subject.file}: its network cannot be run: {reason[:300]}") from error
