"""Benchmark of a network or an exported file: latency, FPS, parameters, multiply-adds and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto
from torch import nn

from dnas.device import resolve_device
from dnas.errors import UserError
from dnas.export.memory import with_peak_memory
from dnas.export.metadata import ExportMetadata
from dnas.export.onnx_file import count_initialisers, read_onnx
from dnas.export.tensorrt_engine import read_engine
from dnas.export.torch_file import read_program
from dnas.files import read_bytes
from dnas.input_channels import input_channels
from dnas.latency.backends import find_backend
from dnas.latency.measure import measure
from dnas.latency.setup import make_setup
from dnas.latency.statistics import Effort, Measurement
from dnas.profile import count_multiply_adds, count_parameters
from dnas.runtimes import OnnxModule, OpaqueModule, OpenVinoModule, ProgramModule, TensorRTModule, import_tensorrt

_MAX_SIDE = 16384


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
    given. Timing takes about ``seconds``. ``trust`` allows to load a TensorRT engine, which contains code.

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
        "input_size": list(subject.shape[2:]),
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
    readers: dict[str, Callable[..., tuple[_Subject, tuple[str, ...]]]] = {
        ".onnx": _of_onnx,
        ".pt2": _of_program,
        ".engine": _of_engine,
        ".plan": _of_engine,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: cannot benchmark this kind of file, expected one of {', '.join(readers)}")
    if reader is _of_engine and not trust:
        raise UserError(
            f"{path}: a TensorRT engine contains code for this machine, which cannot be inspected; "
            "give --trust if you have built it, or export it again from a run"
        )
    subject, backends = reader(path, device=device, backend=backend, threads=threads, batch=batch)
    if backend is not None and backend not in backends:
        raise UserError(f"{path}: runs in {' or '.join(backends)}, given backend {backend}")
    if precision is not None and precision != subject.precision:
        raise UserError(f"{path}: was exported in {subject.precision}, given precision {precision}; export it again")
    if input_size is not None and tuple(input_size) != subject.shape[2:]:
        given, own = ("x".join(map(str, size)) for size in (input_size, subject.shape[2:]))
        raise UserError(f"{path}: was exported for input size {own}, given {given}; export it again")
    return subject


def _of_onnx(
    path: Path, *, device: torch.device, backend: str | None, threads: int | None, batch: int
) -> tuple[_Subject, tuple[str, ...]]:
    model, described = read_onnx(path)
    make_setup(device, threads=threads)
    stored = {tensor.name for tensor in model.graph.initializer}  # old files list these as inputs too
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1 or len(model.graph.output) < 1:
        raise UserError(
            f"{path}: has {len(inputs)} inputs and {len(model.graph.output)} outputs, expected one input of images "
            "and an output of logits"
        )
    image = inputs[0].type.tensor_type
    shape = _fixed_shape(path, [size.dim_value or size.dim_param for size in image.shape.dim], batch)
    if image.elem_type != TensorProto.FLOAT:
        known = {number: name for name, number in TensorProto.DataType.items()}
        given = known.get(image.elem_type, f"type {image.elem_type}").lower()
        raise UserError(f"{path}: takes {given}, expected float32 images")
    precision = described.precision if described else "fp32"
    subject = _Subject(
        module=_onnx_module(path, device, backend, precision, threads),
        shape=shape,
        run_as="eager",
        backend=backend or "onnxruntime",
        precision=precision,
        parameters=count_initialisers(model),
        multiply_adds=described.multiply_adds if described else None,
        file=str(path),
    )
    return subject, ("onnxruntime", "openvino")


def _onnx_module(
    path: Path, device: torch.device, backend: str | None, precision: str, threads: int | None
) -> OpaqueModule:
    """The file loaded in the runtime of ``backend``."""
    if backend == "openvino":
        setup = make_setup(device, backend=backend, precision=precision, threads=threads)
        find_backend(setup)
        return OpenVinoModule(read_bytes(path, "ONNX file"), precision, threads)
    try:
        return OnnxModule(read_bytes(path, "ONNX file"), device, threads)  # the content that was inspected
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise UserError(f"{path}: ONNX Runtime cannot load it: {str(error).strip()[:300]}") from error


def _of_program(
    path: Path, *, device: torch.device, backend: str | None, threads: int | None, batch: int
) -> tuple[_Subject, tuple[str, ...]]:
    program, described = read_program(path)
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) != 1:
        raise UserError(f"{path}: takes {len(inputs)} inputs, expected one of images (N, 3, H, W)")
    backends = ("eager", "compiled", "cudagraph")
    chosen = backend or make_setup(device).backend
    subject = _Subject(
        module=ProgramModule(program, device),
        shape=_fixed_shape(path, inputs[0].meta["val"].shape, batch),
        run_as=chosen if chosen in backends else "eager",
        backend=chosen,
        precision=described.precision if described else "fp32",
        parameters=sum(value.numel() for value in program.parameters()),
        multiply_adds=described.multiply_adds if described else None,
        file=str(path),
    )
    return subject, backends


def _of_engine(
    path: Path, *, device: torch.device, backend: str | None, threads: int | None, batch: int
) -> tuple[_Subject, tuple[str, ...]]:
    content, described = read_engine(path)
    import_tensorrt()
    if device.type != "cuda":
        raise UserError(f"{path}: a TensorRT engine cannot run on {device}; use --device cuda")
    module = TensorRTModule(content, device)
    described = described or ExportMetadata(input_size=(0, 0))
    subject = _Subject(
        module=module,
        shape=_fixed_shape(path, module.input_shape, batch),
        run_as="eager",
        backend="tensorrt",
        precision=described.precision,
        parameters=described.parameters,
        multiply_adds=described.multiply_adds,
        file=str(path),
    )
    return subject, ("tensorrt",)


def _fixed_shape(path: Path, shape: Any, batch: int) -> tuple[int, int, int, int]:
    """The input shape of a file; ``batch`` is used if the batch size is open."""
    sizes = [size if isinstance(size, int) else None for size in shape]
    if len(sizes) != 4 or sizes[1] is None or sizes[2] is None or sizes[3] is None:
        raise UserError(f"{path}: takes an input of shape {list(shape)}, expected images (N, C, H, W) of fixed size")
    if not all(1 <= size <= _MAX_SIDE for size in sizes if size is not None):
        raise UserError(f"{path}: takes an input of shape {list(shape)}, expected sides of 1 to {_MAX_SIDE}")
    if sizes[0] is not None and batch not in (1, sizes[0]):
        raise UserError(f"{path}: was exported for batch {sizes[0]}, given {batch}; export it again")
    return (sizes[0] or batch, sizes[1], sizes[2], sizes[3])


def _measured(
    subject: _Subject, device: torch.device, threads: int | None, seconds: float, measured: Callable[[], None]
) -> Measurement:
    try:
        return measure(
            subject.module,
            [torch.randn(subject.shape, generator=torch.Generator().manual_seed(0))],
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
