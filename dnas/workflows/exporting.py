"""Exporting the network of a run: real images to compare on, the file, and its model card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dnas.config import parse_config
from dnas.data import AugmentationConfig, DataConfig, SegmentationDataset, evenly_spaced, open_dataset
from dnas.data.decode import resize_image
from dnas.data.transforms import EvalTransform
from dnas.errors import UserError
from dnas.export import EndToEnd, ExportMetadata, Parity, export_onnx, export_tensorrt, export_torch
from dnas.export.card import write_card
from dnas.export.onnx_file import read_onnx
from dnas.export.tensorrt_engine import read_engine
from dnas.export.torch_file import read_program
from dnas.progress import Progress
from dnas.runtimes.onnx_model import OPSET
from dnas.workflows.networks import LoadedNetwork
from dnas.workflows.quantising import QuantisationConfig, export_int8

FORMATS = ("onnx", "torch", "tensorrt")
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export and how; :class:`dnas.export.EndToEnd` explains ``end_to_end``.

    ``data`` gives the images to compare on, by default those that the run was trained on; ``images`` is their number.
    """

    file_format: str = "onnx"
    input_size: tuple[int, int] | None = None
    precision: str = "fp32"
    batch: int = 1
    dynamic_batch: bool = False
    dynamic_size: bool = False
    opset: int | None = None
    end_to_end: EndToEnd | None = None
    licence: str | None = None
    data: DataConfig | None = None
    images: int = 4
    quantisation: QuantisationConfig = field(default_factory=QuantisationConfig)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A written file, its card, its comparison with PyTorch, and what the user should know.

    Of an INT8 file also the layers that stay in floating point, and ``rows``: each precision with mIoU and latency.
    """

    input_size: tuple[int, int]
    parity: Parity
    card: Path
    notes: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()


def export_run(loaded: LoadedNetwork, out: Path, request: ExportRequest, progress: Progress | None = None) -> Exported:
    """Export a network of a run, compared with PyTorch on real images, with a model card beside it.

    Raises :class:`UserError` for options that the format does not have, and whatever the export raises.
    """
    if loaded.labels is None or loaded.augmentation is None:
        raise UserError(f"{loaded.name}: has no trained weights, expected the run folder of a retraining")
    if request.file_format not in FORMATS:
        raise UserError(f"format {request.file_format!r}: expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if request.opset is not None and request.file_format != "onnx":
        raise UserError(f"--opset is for onnx, the format is {request.file_format}")
    if request.precision not in PRECISIONS:
        raise UserError(f"precision {request.precision!r}: expected {', '.join(PRECISIONS)}")
    size = request.input_size or loaded.input_size or (0, 0)
    if request.precision == "int8":
        return _export_int8(loaded, out, request, size, progress)
    images, notes = images_to_compare(loaded, request, size)
    options: dict[str, Any] = {
        **_options(loaded, request),
        "precision": request.precision,
        "images": images,
    }
    if request.file_format == "onnx":
        parity = export_onnx(loaded.network, out, size, opset=request.opset or OPSET, **options)
    else:
        write = {"torch": export_torch, "tensorrt": export_tensorrt}[request.file_format]
        parity = write(loaded.network, out, size, **options)
    metadata = read_metadata(out, request.file_format)
    card = write_card(out, loaded.name, metadata, run_facts(loaded), parity)
    return Exported(input_size=size, parity=parity, card=card, notes=tuple(notes))


def _export_int8(
    loaded: LoadedNetwork, out: Path, request: ExportRequest, size: tuple[int, int], progress: Progress | None
) -> Exported:
    if request.file_format not in ("onnx", "tensorrt"):
        raise UserError(f"precision int8 is for the formats onnx and tensorrt, given {request.file_format}")
    config = request.quantisation
    data = request.data or run_data(loaded)
    train = open_dataset(data, "train")
    count = min(config.calibration_images, len(train))
    stored = stored_images(train, evenly_spaced(len(train), count), _image_size(request, size))
    found = export_int8(
        loaded.network,
        out,
        size,
        _options(loaded, request),
        config,
        calibration=_as_taken(stored, loaded, request).numpy(),
        validation=open_dataset(data, "val"),
        opset=request.opset or OPSET,
        engine=request.file_format == "tensorrt",
        progress=progress,
    )
    facts = {**run_facts(loaded), **{f"{row['name']} mIoU": f"{100 * row['miou']:.2f} %" for row in found.rows}}
    card = write_card(out, loaded.name, read_metadata(out, request.file_format), facts, found.parity)
    return Exported(input_size=size, parity=found.parity, card=card, notes=(), excluded=found.excluded, rows=found.rows)


def _options(loaded: LoadedNetwork, request: ExportRequest) -> dict[str, Any]:
    """The options of :func:`dnas.export.prepare` besides precision."""
    assert loaded.labels is not None
    assert loaded.augmentation is not None
    return {
        "batch": request.batch,
        "dynamic_batch": request.dynamic_batch,
        "dynamic_size": request.dynamic_size,
        "end_to_end": request.end_to_end,
        "class_names": loaded.labels.names,
        "colours": loaded.labels.colours,
        "mean": loaded.augmentation.mean,
        "std": loaded.augmentation.std,
        "value_range": None if loaded.run is None else run_data(loaded).range,
        "licence": request.licence,
    }


def read_metadata(path: Path, file_format: str) -> ExportMetadata:
    """The metadata of a file that was just written."""
    read: Any = {"onnx": read_onnx, "torch": read_program, "tensorrt": read_engine}[file_format]
    metadata: ExportMetadata | None = read(path)[1]
    if metadata is None:
        raise UserError(f"{path}: holds no metadata of dnas")
    return metadata


def run_data(loaded: LoadedNetwork) -> DataConfig:
    """The configuration of the data that a run was trained on."""
    if loaded.run is None:
        raise UserError(f"{loaded.name}: is not a run, so its data is unknown; give --data")
    values = loaded.run.configuration.get("data", {})
    return parse_config(DataConfig, values, str(loaded.run.path / "configuration.yaml"))


def run_facts(loaded: LoadedNetwork) -> dict[str, str]:
    """What a run says about its network: data, best mIoU, epochs, commit."""
    run = loaded.run
    if run is None:
        return {}
    facts = {}
    data = run.configuration.get("data", {})
    if isinstance(data, dict) and data.get("dataset"):
        facts["trained on"] = str(data["dataset"])
    scored = [record["miou"] for record in run.records("epoch") if record.get("miou") is not None]
    if scored:
        facts["validation mIoU"] = f"{100 * max(scored):.2f} %"
    if run.environment.get("git_commit"):
        facts["trained at commit"] = str(run.environment["git_commit"])
    return facts


def images_to_compare(
    loaded: LoadedNetwork, request: ExportRequest, size: tuple[int, int]
) -> tuple[torch.Tensor | None, list[str]]:
    """Validation images as the file takes them, or None and why there are none."""
    try:
        dataset = open_dataset(request.data or run_data(loaded), "val")
        count = min(request.images, len(dataset))
        if count == 0:
            return None, ["compared with PyTorch on random images"]
        stored = stored_images(dataset, evenly_spaced(len(dataset), count), _image_size(request, size))
    except UserError as error:
        if request.data is not None:
            raise
        return None, [f"compared with PyTorch on random images: {error}"]
    return _as_taken(stored, loaded, request), []


def _as_taken(stored: torch.Tensor, loaded: LoadedNetwork, request: ExportRequest) -> torch.Tensor:
    """Images uint8 (N, 3, H, W) as the file takes them: normalised, or in the layout of an end-to-end file."""
    assert loaded.augmentation is not None
    if request.end_to_end is None:
        return normalised(stored, loaded.augmentation)
    return stored.permute(0, 2, 3, 1) if request.end_to_end.layout == "nhwc" else stored


def stored_images(dataset: SegmentationDataset, indices: list[int] | range, size: tuple[int, int]) -> torch.Tensor:
    """The images ``indices``, uint8 (N, 3, *size)."""
    return torch.stack([resize_image(dataset[index][0].as_subclass(torch.Tensor), size) for index in indices])


def normalised(images: torch.Tensor, augmentation: AugmentationConfig) -> torch.Tensor:
    """Float32 images as the network takes them, of uint8 (N, 3, H, W)."""
    mask: Any = torch.zeros(1, dtype=torch.uint8)
    image: Any = images
    return EvalTransform(augmentation)(image, mask)[0]


def _image_size(request: ExportRequest, size: tuple[int, int]) -> tuple[int, int]:
    return size if request.end_to_end is None else request.end_to_end.image_size or size
