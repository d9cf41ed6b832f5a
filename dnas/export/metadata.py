"""Metadata in an exported file: classes, normalisation, input size, and the size of the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated

from torch import nn

from dnas import __version__
from dnas.config import Field, config, parse_config
from dnas.errors import UserError
from dnas.files import parse_json
from dnas.profile import count_multiply_adds, count_parameters

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Side = Annotated[int, Field(ge=0, lt=2**31)]


@config
class ExportMetadata:
    """Metadata that is stored in every exported file.

    ``input_size`` is (height, width). Inputs are RGB images in 0 to 1, minus ``mean``, divided by ``std``.
    ``parameters`` and ``multiply_adds`` (of one image) are those of the PyTorch network.
    """

    input_size: tuple[_Side, _Side]
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    parameters: _Count | None = None
    multiply_adds: _Count | None = None
    precision: Annotated[str, Field(pattern="^[a-z0-9]{1,8}$")] = "fp32"
    dnas_version: str = __version__

    def to_texts(self) -> dict[str, str]:
        """Every value as JSON text by name, the format of metadata in ONNX files."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> ExportMetadata | None:
        """The inverse of :meth:`to_texts`; None for texts that this package has not written."""
        try:
            values = {field.name: parse_json(texts[field.name]) for field in fields(cls)}
            return parse_config(cls, values, "metadata")
        except (KeyError, ValueError, TypeError, UserError):
            return None


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
