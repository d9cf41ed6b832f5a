"""Metadata in an exported file: classes, colours, sizes, normalisation, commit, licence and more."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from typing import Annotated, Any

from torch import nn

from dnas import __version__
from dnas.config import Field, config, parse_config
from dnas.environment import source_commit
from dnas.errors import UserError
from dnas.files import parse_json
from dnas.profile import count_multiply_adds, count_parameters

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Side = Annotated[int, Field(ge=0, lt=2**31)]


@config
class ExportMetadata:
    """Metadata that is stored in every exported file.

    ``input_size`` is (height, width) of the images that the network gets. Normalised images are RGB in 0 to 1, minus
    ``mean``, divided by ``std``; an end-to-end file takes RGB images uint8 of ``image_size`` and does that itself. With
    other than three means the images have as many channels. ``value_range`` are the values of image files that become 0
    and 255; None for 8 bits.
    ``colours`` are RGB, 0 to 255, in the order of ``class_names``. ``parameters`` and ``multiply_adds`` (of one image)
    are those of the PyTorch network. ``resize`` says how an end-to-end file resizes, None in other files. ``commit``
    is that of the dnas that exported, if it ran from a checkout; ``licence`` is what the user stated for the weights.
    ``excluded_layers`` are those that a quantised file computes in floating point.
    """

    input_size: tuple[_Side, _Side]
    class_names: tuple[str, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    parameters: _Count | None = None
    multiply_adds: _Count | None = None
    precision: Annotated[str, Field(pattern="^[a-z0-9]{1,8}$")] = "fp32"
    dynamic_size: bool = False
    end_to_end: bool = False
    image_size: tuple[_Side, _Side] | None = None
    resize: str | None = None
    layout: Annotated[str, Field(pattern="^(nchw|nhwc)$")] = "nchw"
    calibration_images: _Count | None = None
    excluded_layers: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    commit: str | None = None
    licence: str | None = None
    dnas_version: str = __version__

    def to_texts(self) -> dict[str, str]:
        """Every value as JSON text by name, the format of metadata in ONNX files."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> ExportMetadata | None:
        """The inverse of :meth:`to_texts`; None for texts that this package has not written.

        A value that an earlier version did not write has its default.
        """
        try:
            values = {
                field.name: parse_json(texts[field.name])
                for field in fields(cls)
                if field.name in texts or field.default is MISSING or field.name == "dnas_version"
            }
            return parse_config(cls, values, "metadata")
        except (KeyError, ValueError, TypeError, UserError):
            return None


def describe(
    network: nn.Module,
    input_size: tuple[int, int],
    *,
    class_names: Iterable[str] = (),
    colours: Iterable[Iterable[int]] = (),
    mean: Iterable[float] = (),
    std: Iterable[float] = (),
    **others: Any,
) -> ExportMetadata:
    """The metadata of ``network`` at ``input_size``; ``others`` are further fields of :class:`ExportMetadata`."""
    return ExportMetadata(
        input_size=input_size,
        class_names=tuple(class_names),
        colours=tuple((int(red), int(green), int(blue)) for red, green, blue in colours),
        mean=tuple(mean),
        std=tuple(std),
        parameters=count_parameters(network),
        multiply_adds=count_multiply_adds(network, input_size),
        commit=source_commit(),
        **others,
    )
