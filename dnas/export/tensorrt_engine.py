"""TensorRT: build an engine for the GPU of this machine from the ONNX export, and run it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnas.errors import UserError
from dnas.export.metadata import ExportMetadata, describe
from dnas.export.onnx_file import onnx_bytes
from dnas.export.parity import TOLERANCES, Parity, check_parity
from dnas.export.runtimes import OpaqueModule
from dnas.files import read_bytes, read_json, write_atomically, write_json

_DTYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}


def import_tensorrt() -> Any:
    """The ``tensorrt`` package; :class:`UserError` naming the extra when it is not installed."""
    try:
        return importlib.import_module("tensorrt")
    except ImportError:
        raise UserError('TensorRT is not installed; install it with: pip install "dnas[tensorrt]"') from None


def export_tensorrt(
    network: nn.Module,
    out: str | Path,
    input_size: tuple[int, int],
    *,
    batch: int = 1,
    class_names: Iterable[str] = (),
    mean: Iterable[float] = (),
    std: Iterable[float] = (),
    images: torch.Tensor | None = None,
    precision: str = "fp32",
    workspace_bytes: int = 4 << 30,
    tolerance: float | None = None,
) -> Parity:
    """Build a TensorRT engine of fixed batch and input size for this machine's GPU, and compare it with the network.

    Precision ``fp32`` computes without TF32; ``fp16`` computes in half precision with float32 images and logits. What
    the file cannot say about itself is written beside it, as ``OUT.json``. Raises :class:`UserError` without TensorRT
    or a CUDA device, when the engine cannot be built, or when its output differs; no file is left then.
    """
    trt = import_tensorrt()
    if not torch.cuda.is_available():
        raise UserError(
            "a TensorRT engine is built on the GPU that it is for, and this machine has no usable CUDA device"
        )
    described = describe(
        network, input_size, class_names=tuple(class_names), mean=tuple(mean), std=tuple(std), precision=precision
    )
    model = onnx_bytes(network, input_size, batch=batch, precision=precision, metadata=described)
    engine = build_engine(trt, model, workspace_bytes)
    parity = check_parity(
        network,
        TensorRTModule(engine),
        input_size,
        batch=batch,
        images=images,
        tolerance=TOLERANCES[precision] if tolerance is None else tolerance,
        what=f"{out}: the TensorRT engine",
    )
    write_json(metadata_path(out), described.to_texts())
    write_atomically(out, lambda stream: stream.write(engine))
    return parity


def metadata_path(engine: str | Path) -> Path:
    """The JSON file beside an engine that says what the engine cannot."""
    return Path(f"{engine}.json")


def read_engine(path: str | Path) -> tuple[bytes, ExportMetadata | None]:
    """An engine file's content, and the metadata beside it where there is any."""
    content = read_bytes(path, "TensorRT engine")
    beside = metadata_path(path)
    if not beside.is_file():
        return content, None
    values = read_json(beside, "description of a TensorRT engine")
    described = ExportMetadata.from_texts(values) if isinstance(values, dict) else None
    if described is None:
        raise UserError(f"{beside}: not the description of a TensorRT engine; export the engine anew")
    return content, described


def build_engine(trt: Any, model: bytes, workspace_bytes: int) -> bytes:
    """Serialised engine of the content of an ONNX file.

    The network is strongly typed, that is in the ONNX file's own types: TensorRT 11 knows nothing else, and TensorRT 10
    then does not silently lower the precision.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise UserError(f"TensorRT cannot read the exported ONNX file: {errors[:400]}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"TensorRT {trt.__version__} could not build an engine; its own message stands above")
    return bytes(engine)


class TensorRTModule(OpaqueModule):
    """A TensorRT engine on the current CUDA device."""

    def __init__(self, engine: bytes, device: str | torch.device = "cuda") -> None:
        super().__init__(torch.device(device))
        trt = import_tensorrt()
        with torch.cuda.device(self.device):
            self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            self._engine = self._runtime.deserialize_cuda_engine(engine)
            if self._engine is None:
                raise UserError("not a TensorRT engine for this GPU and this TensorRT version; export it anew here")
            self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise UserError(
                f"the TensorRT engine has {len(inputs)} inputs and {len(outputs)} outputs, expected 1 and 1"
            )
        self._input, self._output = inputs[0], outputs[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape (N, 3, H, W) that the engine was built for."""
        return tuple(self._engine.get_tensor_shape(self._input))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W) on the engine's device, queued on the current stream."""
        images = images.to(self.device, self._dtype(self._input)).contiguous()
        shape = tuple(self._engine.get_tensor_shape(self._output))
        logits = torch.empty(shape, device=self.device, dtype=self._dtype(self._output))
        self._context.set_tensor_address(self._input, images.data_ptr())
        self._context.set_tensor_address(self._output, logits.data_ptr())
        stream = torch.cuda.current_stream(self.device)
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        # The engine reads the images after this call returns: their memory must not be given to another tensor before.
        images.record_stream(stream)
        return logits

    def _dtype(self, name: str) -> torch.dtype:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise UserError(f"the TensorRT engine's {name} is of type {kind}, known: {', '.join(_DTYPES)}")
        return _DTYPES[kind]
