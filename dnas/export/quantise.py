"""Static INT8 quantisation of ONNX models, with QuantizeLinear and DequantizeLinear nodes, weights per channel."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

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

    model: content of a float32 ONNX file of one input. images: its inputs, one batch each. symmetric: whether the zero
    points of activations are 0, which TensorRT needs.
    """

    def __init__(self, model: bytes, images: Sequence[Array], *, symmetric: bool = False) -> None:
        if not images:
            raise UserError("quantisation needs calibration images, given none")
        self._model, self._images, self._symmetric = model, list(images), symmetric
        self._ranges: str | None = None
        proto = onnx.load_from_string(model)
        self._input = proto.graph.input[0].name
        self.layers: tuple[str, ...] = tuple(node.name for node in proto.graph.node if node.op_type in _LAYERS)
        if not self.layers:
            raise UserError("the model has no convolutions or matrix products to quantise")
        self._last = _after_layers(proto)

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
                _Reader(self._input, self._images),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=list(_OPERATORS),
                nodes_to_exclude=[*exclude, *self._last],
                extra_options={"ActivationSymmetric": self._symmetric, "WeightSymmetric": True},
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
        proto = onnx.load_from_string(model)
        self._input = proto.graph.input[0].name
        self.layers: tuple[str, ...] = tuple(node.name for node in proto.graph.node if node.op_type in _LAYERS)
        self._last = _after_layers(proto)

    def quantise(self, exclude: Collection[str] = ()) -> bytes:
        """See :class:`Quantiser`."""
        nncf = self._nncf
        with _quiet_logging(), contextlib.redirect_stdout(io.StringIO()):  # it draws its own progress bars
            quantised = nncf.quantize(
                onnx.load_from_string(self._model),
                nncf.Dataset([{self._input: image} for image in self._images]),
                subset_size=len(self._images),
                ignored_scope=nncf.IgnoredScope(names=[*exclude, *self._last], validate=False),
            )
        content: bytes = quantised.SerializeToString(deterministic=True)
        return content


def make_quantiser(name: str, model: bytes, images: Sequence[Array], *, symmetric: bool = False) -> Quantiser:
    """The quantiser ``onnxruntime`` or ``nncf``; :class:`UserError` for another name or a missing package."""
    if name == "onnxruntime":
        return OnnxRuntimeQuantiser(model, images, symmetric=symmetric)
    if name == "nncf":
        return NncfQuantiser(model, images)
    raise UserError(f"quantiser {name!r}: expected {' or '.join(QUANTISERS)}")


def sensitivities(
    quantiser: Quantiser, outputs: Callable[[bytes], Sequence[Array]], expected: Sequence[Array]
) -> dict[str, float]:
    """For each layer the error of the outputs if it alone is quantised, the largest first.

    ``outputs`` runs a model on some images, ``expected`` is what the model gives in floating point. The error is the
    mean squared difference; of class maps the share of pixels that differ.
    """
    found = {}
    for layer in quantiser.layers:
        others = [name for name in quantiser.layers if name != layer]
        pairs = zip(outputs(quantiser.quantise(others)), expected, strict=True)
        found[layer] = float(np.mean([_error(given, wanted) for given, wanted in pairs]))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def exclude_until(
    quantiser: Quantiser, order: Sequence[str], good: Callable[[bytes], bool]
) -> tuple[tuple[str, ...], bytes]:
    """The fewest first layers of ``order`` to leave in floating point so that the model is ``good``, and that model.

    Tries 1, 2, 4, ... layers, then bisects; more layers are taken to be never worse. Raises :class:`UserError` if not
    even all of them suffice.
    """
    bad, count = 0, 1
    while True:
        count = min(count, len(order))
        model = quantiser.quantise(order[:count])
        if good(model):
            break
        if count == len(order):
            raise UserError(
                "INT8 loses more mIoU than allowed even with all layers in floating point: the calibration images "
                "may not be like those of the network"
            )
        bad, count = count, 2 * count
    while count - bad > 1:
        middle = (bad + count) // 2
        tried = quantiser.quantise(order[:middle])
        if good(tried):
            count, model = middle, tried
        else:
            bad = middle
    return tuple(order[:count]), model


def _error(given: Array, wanted: Array) -> float:
    if np.issubdtype(wanted.dtype, np.integer):
        return float((given != wanted).mean())
    return float(np.square(given.astype(np.float64) - wanted).mean())


class _Reader:
    """The calibration images as ONNX Runtime reads them."""

    def __init__(self, name: str, images: Sequence[Array]) -> None:
        self._rest = iter([{name: image} for image in images])

    def get_next(self) -> dict[str, Array] | None:
        """The next inputs, None after the last."""
        return next(self._rest, None)


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
