"""TensorRT: building an engine from ONNX, and running it as a module."""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnas.errors import UserError
from dnas.files import write_atomically
from dnas.runtimes.opaque import BindableModule, BoundRun, own_stream

WORKSPACE_BYTES = 4 << 30
_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
}


def import_tensorrt() -> Any:
    """The ``tensorrt`` package; :class:`UserError` naming the extra if it is not installed."""
    try:
        return importlib.import_module("tensorrt")
    except ImportError:
        raise UserError('TensorRT is not installed; install it with: pip install "dnas[tensorrt]"') from None


@functools.cache
def _builder(trt: Any, device: int) -> tuple[Any, Any]:
    """The logger and the only ``Builder`` for a GPU in this process: each new one loads TensorRT's kernels again."""
    logger = trt.Logger(trt.Logger.ERROR)
    return logger, trt.Builder(logger)


def build_engine(
    trt: Any,
    model: bytes,
    workspace_bytes: int = WORKSPACE_BYTES,
    *,
    tf32: bool = False,
    timing_cache: Path | None = None,
) -> bytes:
    """The serialised engine for the content of an ONNX file, built for the current CUDA device.

    The network is strongly typed, with the types of the ONNX file: TensorRT 11 supports nothing else, and it keeps
    TensorRT 10 from lowering the precision. ``tf32`` allows TF32 in float32 layers. ``timing_cache`` is a file with the
    times of kernels that earlier builds measured; it is written, too.
    """
    logger, builder = _builder(trt, torch.cuda.current_device() if torch.cuda.is_available() else 0)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise UserError(f"TensorRT cannot read the exported ONNX file: {errors[:400]}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    if tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"TensorRT {trt.__version__} could not build an engine; see its message above")
    if timing_cache is not None:
        times = bytes(config.get_timing_cache().serialize())
        write_atomically(timing_cache, lambda stream: stream.write(times))
    return bytes(engine)


@dataclass(frozen=True)
class EngineCache:
    """Serialised engines and TensorRT's times of kernels in a folder, of one version on one kind of GPU.

    A latency table needs hundreds of engines, each in several rounds that are far apart, and building one takes longer
    than measuring it.
    """

    folder: Path

    def engine(self, trt: Any, model: bytes, *, tf32: bool = False) -> bytes:
        """The engine of :func:`build_engine`, from the folder if it is there."""
        digest = hashlib.sha256(model).hexdigest()
        path = self.folder / f"{digest}{'-tf32' if tf32 else ''}.engine"
        if path.is_file():
            return path.read_bytes()
        engine = build_engine(trt, model, tf32=tf32, timing_cache=self.folder / "timing_cache")
        write_atomically(path, lambda stream: stream.write(engine))
        return engine


class TensorRTModule(BindableModule):
    """A TensorRT engine on a CUDA device, by default the current one."""

    def __init__(self, engine: bytes, device: str | torch.device = "cuda") -> None:
        super().__init__(torch.device(device))
        self.stream = own_stream(self.device)
        trt = import_tensorrt()
        with torch.cuda.device(self.device):
            self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            self._engine = self._runtime.deserialize_cuda_engine(engine)
            if self._engine is None:
                raise UserError("not a TensorRT engine for this GPU and this TensorRT version; export it again here")
            self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape (N, 3, H, W) that the engine was built for."""
        self._check_one_each()
        return tuple(self._engine.get_tensor_shape(self.inputs[0]))

    @property
    def input_dtype(self) -> torch.dtype:
        """The type of the images that the engine was built for."""
        self._check_one_each()
        return self._dtype(self.inputs[0])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W) or classes (N, H, W) on the engine's device, queued on the current stream."""
        self._check_one_each()
        images = images.to(self.device, self._dtype(self.inputs[0])).contiguous()
        (logits,) = self._connect([images])
        stream = torch.cuda.current_stream(self.device)
        self._enqueue(stream)
        # The engine may read the images after this call returns, so their memory must not be reused earlier.
        images.record_stream(stream)
        return logits

    def bind(self, inputs: Sequence[torch.Tensor]) -> BoundRun:
        """A function that enqueues one run on these inputs, which are on the engine's device and have its types."""
        held = [tensor.contiguous() for tensor in inputs]
        outputs = self._connect(held)

        def queue(_held: object = held) -> tuple[torch.Tensor, ...]:
            self._enqueue(self.stream)
            return outputs

        return queue

    def _connect(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Set the addresses of the engine's inputs, in the order of the ONNX file, and of newly allocated outputs."""
        outputs = tuple(
            torch.empty(tuple(self._engine.get_tensor_shape(name)), device=self.device, dtype=self._dtype(name))
            for name in self.outputs
        )
        for name, tensor in zip((*self.inputs, *self.outputs), (*inputs, *outputs), strict=True):
            if tensor.dtype != self._dtype(name) or tuple(tensor.shape) != tuple(self._engine.get_tensor_shape(name)):
                raise ValueError(f"{name}: given {tensor.dtype} of shape {tuple(tensor.shape)}, the engine's differs")
            self._context.set_tensor_address(name, tensor.data_ptr())
        return outputs

    def _enqueue(self, stream: torch.cuda.Stream | None) -> None:
        if stream is None:
            raise ValueError("a TensorRT engine needs a CUDA stream")
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")

    def _check_one_each(self) -> None:
        counts = len(self.inputs), len(self.outputs)
        if counts != (1, 1):
            raise UserError(f"the TensorRT engine has {counts[0]} inputs and {counts[1]} outputs, expected 1 and 1")

    def _dtype(self, name: str) -> torch.dtype:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise UserError(f"the TensorRT engine's {name} is of type {kind}, known: {', '.join(_DTYPES)}")
        return _DTYPES[kind]
