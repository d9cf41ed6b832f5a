"""Import of FasterSeg's published latency table: safe reading of its pickle, and conversion of its entries.

The file is a NumPy array file with one pickled ``dict``, entry name -> ms. An entry is a layer of the published code;
its name contains the input's height and width and the channels. The operators of cells only have other names here;
stem, fusions and head are sums of entries (:func:`published_entries`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from dnas.errors import UserError
from dnas.latency.device import DeviceInfo
from dnas.latency.provenance import Provenance
from dnas.latency.published_pickle import read_pickled_dict
from dnas.latency.spec import OperatorSpec
from dnas.latency.statistics import Measurement
from dnas.latency.table import LatencyTable
from dnas.latency.table_file import LARGEST_MS

PUBLISHED_DEVICE = "NVIDIA GeForce GTX 1080 Ti"
"""The device of the authors' measurements (FasterSeg section 4.1)."""

_SOFTWARE = {"tensorrt": "5.1.5", "cuda": "10.0", "cudnn": "7"}
_OPERATORS = {
    "FactorizedReduce": "skip",
    "BasicResidual1x": "conv",
    "BasicResidual2x": "conv_x2",
    "BasicResidual_downup_1x": "zoomed_conv",
    "BasicResidual_downup_2x": "zoomed_conv_x2",
}
_SIZE = r"H(?P<h>[0-9]{1,5})_W(?P<w>[0-9]{1,5})"
_CHANNELS = r"Cin(?P<cin>[0-9]{1,5})_Cout(?P<cout>[0-9]{1,5})"
_NAMES = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (
        rf"(?P<name>{'|'.join(_OPERATORS)})_{_SIZE}_{_CHANNELS}_stride(?P<stride>[12])(?:_dilation1)?",
        rf"(?P<name>ConvNorm)_{_SIZE}_{_CHANNELS}_kernel(?P<kernel>[1-9])_stride(?P<stride>[12])",
        rf"(?P<name>head)_{_SIZE}_{_CHANNELS}",
        rf"(?P<name>ff)_{_SIZE}_C(?P<cin>[0-9]{{1,5}})",
    )
)
_NOTES = (
    "Published with FasterSeg and imported, not measured here. Device, TensorRT, CUDA and cuDNN versions are those "
    "given in section 4.1 of the paper. Unknown, because not recorded in the file: device memory (0), driver, clocks, "
    "threads (0), cache, date, seconds, repetitions and rounds (1 each), percentiles (equal to the latency). The "
    "entries stem, fuse and head are sums of entries of single layers; fuse contains its two convolutions, but not the "
    "upsampling and concatenation between them, and head does not contain the upsampling of the logits to the image."
)


def import_published_table(path: str | Path, *, device_name: str = PUBLISHED_DEVICE) -> LatencyTable:
    """The table of a published ``latency_lookup_table.npy``, with our operator signatures.

    Only a plain dict of names and numbers is read from the pickle; nothing in it is executed. Raises
    :class:`UserError` for a damaged file, other types, an unknown or invalid name, and a latency that is not a positive
    number. ``device_name``: for tables measured with the published code on another device.
    """
    raw = read_pickled_dict(path)
    latencies: dict[OperatorSpec, float] = {}
    for name, value in raw.items():
        spec = _spec(path, name)
        if spec in latencies:
            raise UserError(f"{path}: the entry {_short(name)} occurs twice, under two names")
        latencies[spec] = _milliseconds(path, name, value)
    entries = latencies | published_entries(latencies, str(path))
    size = _image_size(latencies, str(path))
    provenance = Provenance(
        space="fasterseg",
        input_size=size,
        device=DeviceInfo(type="cuda", name=device_name, memory_bytes=0),
        backend="tensorrt",
        precision="fp32",
        memory_format="contiguous",
        threads=0,
        batch=1,
        cache="unknown",
        cudnn_benchmark=False,
        effort={},
        software=dict(_SOFTWARE),
        command=None,
        date="unknown",
        seconds=0.0,
        before={},
        after={},
        notes=f"{_NOTES} Source file: {Path(path).name}, {len(raw)} entries.",
    )
    rows = {spec.key: Measurement(ms, ms, ms, 1, 1) for spec, ms in sorted(entries.items(), key=lambda e: e[0].key)}
    return LatencyTable(provenance, rows)


def published_entries(latencies: Mapping[OperatorSpec, float], source: str = "table") -> dict[OperatorSpec, float]:
    """Our stems, fusions and heads as sums of single layers, as far as all their layers are in the table.

    stem: a 3x3 ConvNorm of stride 2 on the image and two conv x2 of stride 2. fuse: a 1x1 ConvNorm on the coarser map
    and a 3x3 ConvNorm on the concatenation. head: ff and head on one to three concatenated branches.
    """
    size = _image_size(latencies, source)
    composed: dict[OperatorSpec, float] = {}
    for ratio in _end_ratios(latencies, size):
        composed |= _stem(latencies, ratio, size)
        composed |= dict(_fuses(latencies, ratio, size))
        composed |= dict(_heads(latencies, ratio, size))
    return composed


def _stem(latencies: Mapping[OperatorSpec, float], ratio: int, size: tuple[int, int]) -> dict[OperatorSpec, float]:
    parts = (
        _conv_norm((3, *size), 4 * ratio, kernel=3, stride=2),
        OperatorSpec("conv_x2", ((4 * ratio, *_at(size, 2)),), 8 * ratio, 2),
        OperatorSpec("conv_x2", ((8 * ratio, *_at(size, 4)),), 8 * ratio, 2),
    )
    total = _sum(latencies, parts)
    return {} if total is None else {OperatorSpec("stem", ((3, *size),), 8 * ratio, 8): total}


def _fuses(
    latencies: Mapping[OperatorSpec, float], ratio: int, size: tuple[int, int]
) -> Iterator[tuple[OperatorSpec, float]]:
    for scale in (8, 16):
        out = scale * ratio
        coarse = (2 * out, *_at(size, 2 * scale))
        for spec in latencies:
            joined, height, width = spec.inputs[0]
            skip = joined - out
            if spec == _conv_norm((joined, *_at(size, scale)), out, kernel=3, stride=1) and skip > 0:
                total = _sum(latencies, (_conv_norm(coarse, out, kernel=1, stride=1), spec))
                if total is not None:
                    yield OperatorSpec("fuse", ((skip, height, width), coarse), out), total


def _heads(
    latencies: Mapping[OperatorSpec, float], ratio: int, size: tuple[int, int]
) -> Iterator[tuple[OperatorSpec, float]]:
    extras = (("image_height", size[0]), ("image_width", size[1]))
    for branches in (1, 2, 3):
        joined = (8 * ratio * branches, *_at(size, 8))
        for spec in latencies:
            if spec.operator == "published_head" and spec.inputs == (joined,):
                total = _sum(latencies, (OperatorSpec("published_ff", (joined,), joined[0]), spec))
                if total is not None:
                    one = (8 * ratio, *_at(size, 8))
                    yield OperatorSpec("head", (one,) * branches, spec.out_channels, extras=extras), total


def _sum(latencies: Mapping[OperatorSpec, float], parts: tuple[OperatorSpec, ...]) -> float | None:
    found = [latencies[part] for part in parts if part in latencies]
    return sum(found) if len(found) == len(parts) else None


def _conv_norm(shape: tuple[int, int, int], out: int, *, kernel: int, stride: int) -> OperatorSpec:
    return OperatorSpec("conv_norm", (shape,), out, stride, (("kernel", kernel),))


def _at(size: tuple[int, int], scale: int) -> tuple[int, int]:
    return -(-size[0] // scale), -(-size[1] // scale)


def _stems(latencies: Mapping[OperatorSpec, float]) -> list[OperatorSpec]:
    return [spec for spec in latencies if spec.operator == "conv_norm" and spec.inputs[0][0] == 3 and spec.stride == 2]


def _image_size(latencies: Mapping[OperatorSpec, float], source: str) -> tuple[int, int]:
    sizes = {spec.inputs[0][1:] for spec in _stems(latencies)}
    if len(sizes) != 1:
        given = ", ".join(f"{height}x{width}" for height, width in sorted(sizes)) or "none"
        raise UserError(
            f"{source}: expected entries ConvNorm_H.._W.._Cin3_.._stride2 of exactly one image size, found {given}"
        )
    return sizes.pop()


def _end_ratios(latencies: Mapping[OperatorSpec, float], size: tuple[int, int]) -> list[int]:
    """Ratios of stem and head: the first convolution of a stem has 4 * ratio channels."""
    widths = {spec.out_channels for spec in _stems(latencies) if spec.inputs[0][1:] == size}
    return sorted(width // 4 for width in widths if width % 4 == 0)


def _spec(path: str | Path, name: str) -> OperatorSpec:
    match = next((found for pattern in _NAMES if (found := pattern.fullmatch(name))), None)
    if match is None:
        raise UserError(f"{path}: the entry {_short(name)}: unknown name, expected those of FasterSeg's table")
    values = match.groupdict()
    name_of = {"ConvNorm": "conv_norm", "ff": "published_ff", "head": "published_head", **_OPERATORS}
    shape = (int(values["cin"]), int(values["h"]), int(values["w"]))
    kernel = values.get("kernel")
    try:
        return OperatorSpec(
            operator=name_of[values["name"]],
            inputs=(shape,),
            out_channels=int(values.get("cout") or values["cin"]),
            stride=int(values.get("stride") or 1),
            extras=() if kernel is None else (("kernel", int(kernel)),),
        )
    except ValueError as error:
        raise UserError(f"{path}: the entry {_short(name)}: {error}") from None


def _milliseconds(path: str | Path, name: str, value: float) -> float:
    if not (math.isfinite(value) and 0 < value <= LARGEST_MS):
        raise UserError(
            f"{path}: the entry {_short(name)}: given {value} ms, expected more than 0, at most {LARGEST_MS:g}"
        )
    return value


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")
