"""Static INT8 quantisation of ONNX models, with QuantizeLinear and DequantizeLinear nodes, weights per channel."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from dnas.errors import UserError
from dnas.runtimes.openvino_runtime import without

QUANTISERS = ("onnxruntime", "nncf")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_OPERATORS = (
    *_LAYERS,
    *("Relu", "Clip", "Sigmoid", "Add", "Mul", "Concat", "Split", "Slice", "Pad", "Reshape", "Transpose"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Resize"),
)

Array = npt.NDArray[Any]


class Quantiser(Protocol):
    """Quantises one model, for any choice of layers that stay in floating point, from one calibration."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers with weights."""

    def quantise(self, exclude: Collection[str] = ()) -> bytes:
        """The content of the quantised ONNX file, with the layers ``exclude`` in floating point."""


class OnnxRuntimeQuantiser:
    """ONNX Runtime's static quantisation: ranges of activations from the extremes on the calibration images.

    model: content of a float32 ONNX file. images: its inputs, one array each, or a tuple of arrays for several inputs.
    whole: also quantise what comes after the last layer with weights, as of an operator inside a network.
    symmetric: all zero points are 0 and biases stay in floating point, as TensorRT needs it.
    """

    def __init__(
        self,
        model: bytes,
        images: Sequence[Array | tuple[Array, ...]],
        *,
        whole: bool = False,
        symmetric: bool = False,
    ) -> None:
        if not images:
            raise UserError("quantisation needs calibration images, given none")
        proto = _parse(model)
        names = [item.name for item in proto.graph.input]
        inputs = [image if isinstance(image, tuple) else (image,) for image in images]
        self._model, self._whole, self._symmetric = model, whole, symmetric
        self._inputs = [dict(zip(names, arrays, strict=True)) for arrays in inputs]
        self._ranges: str | None = None
        self.layers: tuple[str, ...] = tuple(node.name for node in proto.graph.node if node.op_type in _LAYERS)
        if not self.layers and not whole:
            raise UserError("the model has no convolutions or matrix products to quantise")
        self._last = () if whole else _after_layers(proto)

    def quantise(self, exclude: Collection[str] = ()) -> bytes:
        """See :class:`Quantiser`."""
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory() as folder, _quiet_logging():
            source, out, ranges = (Path(folder) / name for name in ("float.onnx", "int8.onnx", "ranges.json"))
            (Path(folder) / "model.onnx").write_bytes(self._model)
            quant_pre_process(
                str(Path(folder) / "model.onnx"), str(source), skip_optimization=True, skip_symbolic_shape=True
            )
            # Ranges are computed once where ONNX Runtime can keep them (1.24).
            kept: dict[str, Any] = {}
            if "calibration_cache_path" in inspect.signature(quantization.quantize_static).parameters:
                kept["calibration_cache_path"] = ranges
                if self._ranges is not None:
                    ranges.write_text(self._ranges)
            quantization.quantize_static(
                str(source),
                str(out),
                _Reader(self._inputs),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=list(_OPERATORS),
                nodes_to_exclude=[*exclude, *self._last],
                extra_options={
                    "WeightSymmetric": True,
                    "ActivationSymmetric": self._symmetric,
                    "QuantizeBias": not self._symmetric,
                    "ForceQuantizeNoInputCheck": self._whole,
                },
                **kept,
            )
            if ranges.exists():
                self._ranges = ranges.read_text()
            return out.read_bytes()


class NncfQuantiser:
    """OpenVINO's NNCF, which also corrects the biases of quantised layers; needs the extra ``quantisation``."""

    def __init__(self, model: bytes, images: Sequence[Array]) -> None:
        if not images:
            raise UserError("quantisation needs calibration images, given none")
        self._nncf = _import_nncf()
        self._model, self._images = model, list(images)
        proto = _parse(model)
        self._input = proto.graph.input[0].name
        self.layers: tuple[str, ...] = tuple(node.name for node in proto.graph.node if node.op_type in _LAYERS)
        self._last = _after_layers(proto)

    def quantise(self, exclude: Collection[str] = ()) -> bytes:
        """See :class:`Quantiser`."""
        nncf = self._nncf
        with _quiet_logging(), contextlib.redirect_stdout(io.StringIO()):  # it draws its own progress bars
            quantised = nncf.quantize(
                _parse(self._model),
                nncf.Dataset([{self._input: image} for image in self._images]),
                subset_size=len(self._images),
                ignored_scope=nncf.IgnoredScope(names=[*exclude, *self._last], validate=False),
            )
        content: bytes = quantised.SerializeToString(deterministic=True)
        return content


def make_quantiser(name: str, model: bytes, images: Sequence[Array], *, symmetric: bool = False) -> Quantiser:
    """The quantiser ``onnxruntime`` or ``nncf``; ``symmetric`` as for :class:`OnnxRuntimeQuantiser`.

    Raises :class:`UserError` for another name, for a missing package, and for ``symmetric`` with NNCF.
    """
    if name == "onnxruntime":
        return OnnxRuntimeQuantiser(model, images, symmetric=symmetric)
    if name == "nncf" and symmetric:
        raise UserError("quantiser nncf: cannot quantise for TensorRT; use the quantiser onnxruntime")
    if name == "nncf":
        return NncfQuantiser(model, images)
    raise UserError(f"quantiser {name!r}: expected {' or '.join(QUANTISERS)}")


class _Reader:
    """The calibration images as ONNX Runtime reads them."""

    def __init__(self, inputs: Sequence[dict[str, Array]]) -> None:
        self._rest = iter(inputs)

    def get_next(self) -> dict[str, Array] | None:
        """The next inputs, None after the last."""
        return next(self._rest, None)


def _parse(model: bytes) -> Any:
    import onnx  # a search imports this module for its latency table but does not need onnx

    return onnx.load_from_string(model)


def _after_layers(model: Any) -> tuple[str, ...]:
    """The nodes after the last layer with weights on every way: upsampling of logits, argmax.

    They stay in floating point, as they only round the result once more.
    """
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    before: set[str] = set()  # nodes that a layer follows
    for node in reversed(model.graph.node):
        following = [reader for name in node.output for reader in readers.get(name, [])]
        if any(reader.op_type in _LAYERS or reader.name in before for reader in following):
            before.add(node.name)
    return tuple(node.name for node in model.graph.node if node.name not in before and node.op_type not in _LAYERS)


def _import_nncf() -> Any:
    try:
        with without("openvino_telemetry"):
            return importlib.import_module("nncf")
    except ImportError:
        raise UserError('NNCF is not installed; install it with: pip install "dnas[quantisation]"') from None


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Suppress the quantisers' notes about their own code, which they log as warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
