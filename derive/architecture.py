"""A discrete network that is stored as a file."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import networkx as nx
from torch import nn
from typing_extensions import Self

from dnas.config import Field, to_mapping
from dnas.files import dump_yaml, write_text
from dnas.latency.spec import OperatorSpec
from dnas.text import encodable

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

VERSION = 1
"""Version of the format of architecture files."""

Count = Annotated[int, Field(ge=1, le=100_000)]


class Architecture(ABC):
    """A discrete network: an explicit, versioned description that is stored as YAML and builds an ``nn.Module``.

    Subclasses are ``@config`` dataclasses, registered by their ``kind`` (:mod:`derive.registry`). ``num_classes`` and
    ``input_size`` (height, width) are those of the search; ``provenance`` records where the architecture came from.
    """

    kind: str
    num_classes: int | None
    input_size: tuple[int, int] | None
    provenance: dict[str, str]

    @staticmethod
    def load(path: str | Path) -> Architecture:
        """Read and check an architecture file of any kind.

        Raises :class:`UserError` for a file that is missing, damaged, or of an unknown kind or version.
        """
        from derive.registry import load_architecture

        return load_architecture(path)

    def save(self, path: str | Path) -> None:
        """Write the architecture as YAML, atomically."""
        write_text(path, dump_yaml(_without_none(to_mapping(self))))

    def check(self) -> None:  # noqa: B027
        """Raise :class:`UserError` if the parts do not fit together; the default implementation checks nothing."""

    @abstractmethod
    def build(self, num_classes: int) -> nn.Module:
        """The network with newly initialised weights: images (N, 3, H, W) -> logits (N, num_classes, H, W)."""

    @abstractmethod
    def signatures(self, num_classes: int, input_size: tuple[int, int]) -> list[OperatorSpec]:
        """The signatures of its operators; the predicted latency is the sum of their entries in a latency table."""

    @abstractmethod
    def graph(self) -> nx.DiGraph:
        """The network as a graph: its parts are nodes with a ``label``, the feature maps between them are edges."""

    @abstractmethod
    def summary(self) -> list[dict[str, Any]]:
        """Its parts as plain data, for printing and for JSON."""

    def drawing(self, title: str = "") -> Drawing:
        """A figure of the network; by default a layered drawing of its graph."""
        from derive.drawing import graph_drawing

        return graph_drawing(self.graph(), title)

    def caption(self, name: str) -> str:
        """Caption of the drawing, one or two sentences."""
        return f"{name}: the parts of the derived network, from the image (left) to the logits (right)."

    def with_provenance(self, **entries: object) -> Self:
        """A copy with additional provenance entries."""
        provenance = {**self.provenance, **{name: encodable(str(value)) for name, value in entries.items()}}
        return dataclasses.replace(self, provenance=provenance)  # type: ignore[type-var]


def identity(architecture: Architecture) -> str:
    """A key that is equal for networks that differ only in their provenance."""
    return repr(architecture.summary())


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value
