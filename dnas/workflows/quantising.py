"""INT8 export of a run: calibration on training images, layers left out by sensitivity, and a table of precisions."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from dnas.data import SegmentationDataset, evenly_spaced
from dnas.errors import UserError
from dnas.export import ExportMetadata
from dnas.export.onnx_file import onnx_of
from dnas.export.parity import Parity
from dnas.export.program import prepare
from dnas.export.sensitivity import exclude_until, sensitivities
from dnas.export.tensorrt_engine import check_buildable, write_engine
from dnas.files import write_atomically
from dnas.progress import NoProgress, Progress
from dnas.runtimes import OnnxModule, TensorRTModule, build_engine
from dnas.runtimes.quantise import make_quantiser
from dnas.workflows.comparing import measure_artefact
from dnas.workflows.evaluating import open_scored

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class QuantisationConfig:
    """How a network is quantised.

    quantiser: ``onnxruntime`` or ``nncf``. calibration_images: training images for the ranges of activations.
    score_images: validation images for the mIoU, 0 for all. largest_drop: of the mIoU, as a fraction; if INT8 loses
    more, the most sensitive layers stay in floating point. seconds: of timing each precision in the table.
    """

    quantiser: str = "onnxruntime"
    calibration_images: int = 64
    score_images: int = 100
    largest_drop: float = 0.01
    seconds: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A written INT8 file: its parity with floating point, the layers left out, and a row for each precision."""

    parity: Parity
    excluded: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]


def export_int8(
    network: Any,
    out: Path,
    input_size: tuple[int, int],
    options: dict[str, Any],
    config: QuantisationConfig,
    *,
    calibration: Array,
    validation: SegmentationDataset,
    opset: int,
    engine: bool = False,
    progress: Progress | None = None,
) -> Quantised:
    """Write ``network`` as an INT8 ONNX file, and measure it beside its fp32 and fp16 files.

    ``options`` are those of :func:`dnas.export.prepare`; ``calibration`` are images as the file takes them, (N, ...).
    ``engine``: write a TensorRT engine that is built from the ONNX file (explicit quantisation); mIoU and latencies are
    those of the ONNX files. Raises :class:`UserError`, and writes no file, if too much mIoU is lost whatever is left
    out, and for an engine that cannot be built here.
    """
    trt = check_buildable(options) if engine else None
    progress = progress or NoProgress()
    indices = _scored_indices(validation, config.score_images)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("fp32", "fp16", "int8")}
        prepared = prepare(network, input_size, **options, precision="fp32")
        batch = prepared.batch or 1
        files["fp32"].write_bytes(onnx_of(prepared, opset))
        half = prepare(network, input_size, **options, precision="fp16")
        files["fp16"].write_bytes(onnx_of(half, opset))
        images = [np.repeat(image[None], batch, axis=0) for image in calibration]
        quantiser = make_quantiser(config.quantiser, files["fp32"].read_bytes(), images, symmetric=engine)

        def description(excluded: Sequence[str]) -> ExportMetadata:
            return dataclasses.replace(
                prepared.metadata,
                precision="int8",
                calibration_images=len(images),
                excluded_layers=tuple(excluded),
            )

        def miou(path: Path) -> float:
            return open_scored(path, validation).evaluate(indices=indices).miou

        def good(model: bytes) -> bool:
            files["int8"].write_bytes(_with_metadata(model, description(())))
            return wanted - miou(files["int8"]) <= config.largest_drop

        progress.begin("quantising")
        wanted = miou(files["fp32"])
        excluded: tuple[str, ...] = ()
        model = quantiser.quantise()
        if not good(model):
            progress.message(f"INT8 loses more than {100 * config.largest_drop:g} points of mIoU; finding the layers")
            some = images[:4]
            found = sensitivities(quantiser, lambda content: _outputs(content, some), _outputs_of(files["fp32"], some))
            excluded, model = exclude_until(quantiser, list(found), good)
        content = _with_metadata(model, description(excluded))
        files["int8"].write_bytes(content)
        rows = tuple(
            {**measure_artefact(str(path), dataset=validation, indices=indices, seconds=config.seconds), "name": name}
            for name, path in files.items()
        )
        expected, given = _outputs_of(files["fp32"], images[:8]), _outputs(content, images[:8])
    if trt is None:
        write_atomically(out, lambda stream: stream.write(content))
    else:
        built = build_engine(trt, content)
        module = TensorRTModule(built)
        given = [module(torch.from_numpy(image)).cpu().numpy() for image in images[:8]]
        write_engine(out, built, description(excluded))
    return Quantised(parity=_parity(expected, given), excluded=excluded, rows=rows)


def _scored_indices(dataset: SegmentationDataset, wanted: int) -> list[int]:
    if len(dataset) == 0:
        raise UserError(f"{dataset.name}: the split {dataset.split} has no images, INT8 needs them for the mIoU")
    return evenly_spaced(len(dataset), min(wanted or len(dataset), len(dataset)))


def _with_metadata(model: bytes, metadata: ExportMetadata) -> bytes:
    proto = onnx.load_from_string(model)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, metadata.to_texts())
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _outputs(model: bytes, images: Sequence[Array]) -> list[Array]:
    module = OnnxModule(model)
    return [module.session.run(None, {module.input.name: image})[0] for image in images]


def _outputs_of(path: Path, images: Sequence[Array]) -> list[Array]:
    return _outputs(path.read_bytes(), images)


def _parity(expected: Sequence[Array], given: Sequence[Array]) -> Parity:
    logits = expected[0].ndim == 4
    pairs = list(zip(expected, given, strict=True))
    difference = max(float(np.abs(one - other).max()) for one, other in pairs) if logits else 0.0
    classes = [(one.argmax(1), other.argmax(1)) if logits else (one, other) for one, other in pairs]
    equal = float(np.mean([(one == other).mean() for one, other in classes]))
    return Parity(max_abs_difference=difference, equal_argmax=equal, images=len(pairs), real=True)
