"""Metadata in an exported file: classes, normalisation, input size, and the size of the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from dnas import __version__
from dnas.profile import count_multiply_adds, count_parameters


@dataclass(frozen=True, kw_only=True)
class ExportMetadata:
    """Metadata that is stored in every exported file.

    ``input_size`` is (height, width). Inputs are RGB images in 0 to 1, minus ``mean``, divided by ``std``.
    ``parameters`` and ``multiply_adds`` (of one image) are those of the PyTorch network.
    """

    input_size: tuple[int, int]
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    parameters: int | None = None
    multiply_adds: int | None = None
    precision: str = "fp32"
    dnas_version: str = __version__

    def to_texts(self) -> dict[str, str]:
        """Every value as JSON text by name, the format of metadata in ONNX files."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> ExportMetadata | None:
        """The inverse of :meth:`to_texts`; None if the file was not written by this package."""
        try:
            values = {field.name: _tuples(json.loads(texts[field.name])) for field in fields(cls)}
        except (KeyError, ValueError, TypeError):
            return None
        return cls(**values)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def describe(
    network: nn.Module,
    input_size: tuple[int, int],
    *,
    class_names: tuple[str, ...] = (),
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    precision: str = "fp32",
) -> ExportMetadata:
    """The metadata of ``network`` at ``input_size``."""
    return ExportMetadata(
        input_size=input_size,
        class_names=tuple(class_names),
        mean=tuple(mean),
        std=tuple(std),
        parameters=count_parameters(network),
        multiply_adds=count_multiply_adds(network, input_size),
        precision=precision,
    )
