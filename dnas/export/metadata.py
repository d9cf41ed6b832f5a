"""Metadata in an exported file: classes, colours, sizes, normalisation, commit, licence and more."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from torch import nn

from dnas import __version__
from dnas.environment import source_commit
from dnas.profile import count_multiply_adds, count_parameters


@dataclass(frozen=True, kw_only=True)
class ExportMetadata:
    """Metadata that is stored in every exported file.

    ``input_size`` is (height, width) of the images that the network gets. Normalised images are RGB in 0 to 1, minus
    ``mean``, divided by ``std``; an end-to-end file takes RGB images uint8 of ``image_size`` and does that itself.
    ``colours`` are RGB, 0 to 255, in the order of ``class_names``. ``parameters`` and ``multiply_adds`` (of one image)
    are those of the PyTorch network. ``resize`` says how an end-to-end file resizes, None in other files. ``commit``
    is that of the dnas that exported, if it ran from a checkout; ``licence`` is what the user stated for the weights.
    ``excluded_layers`` are those that a quantised file computes in floating point.
    """

    input_size: tuple[int, int]
    class_names: tuple[str, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    parameters: int | None = None
    multiply_adds: int | None = None
    precision: str = "fp32"
    dynamic_size: bool = False
    end_to_end: bool = False
    image_size: tuple[int, int] | None = None
    resize: str | None = None
    layout: str = "nchw"
    calibration_images: int | None = None
    excluded_layers: tuple[str, ...] = ()
    commit: str | None = None
    licence: str | None = None
    dnas_version: str = __version__

    def to_texts(self) -> dict[str, str]:
        """Every value as JSON text by name, the format of metadata in ONNX files."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> ExportMetadata | None:
        """The inverse of :meth:`to_texts`; None if the file was not written by this package.

        A value that an earlier version did not write has its default.
        """
        try:
            values = {
                field.name: _tuples(json.loads(texts[field.name]))
                for field in fields(cls)
                if field.name in texts or field.default is MISSING or field.name == "dnas_version"
            }
        except (KeyError, ValueError, TypeError):
            return None
        return cls(**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


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
