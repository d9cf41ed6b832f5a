"""The configuration in a run folder, checked: anyone may have edited or damaged it."""

from __future__ import annotations

from typing import Annotated, Any

from dnas.config import Field, parse_config, record
from dnas.runs.folder import RunFolder

_Byte = Annotated[int, Field(ge=0, le=255)]
_Side = Annotated[int, Field(ge=1, le=16384)]


@record
class SearchConfiguration:
    """The configuration of a search: the space (see :func:`search_spaces.space_from`), its preset, and the data."""

    space: dict[str, Any]
    data: dict[str, Any]
    preset: str | None = None
    classes: tuple[str, ...] | None = None


@record
class NetworkDescription:
    """The network of a retraining: an architecture, or a name with options; ``auxiliary``: with auxiliary heads."""

    architecture: dict[str, Any] | None = None
    name: str | None = None
    options: dict[str, Any] | None = None
    auxiliary: bool | None = None


@record
class RetrainConfiguration:
    """The configuration of a retraining; ``input_size`` is (height, width)."""

    network: NetworkDescription
    data: dict[str, Any]
    retrain: dict[str, Any]
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=255)]
    colours: tuple[tuple[_Byte, _Byte, _Byte], ...]
    input_size: tuple[_Side, _Side]
    teacher: str | None = None
    inherit: str | None = None


def search_configuration(run: RunFolder) -> SearchConfiguration:
    """The configuration of a search; :class:`UserError` names the first invalid key."""
    return parse_config(SearchConfiguration, run.configuration, str(run.path / "configuration.yaml"))


def retrain_configuration(run: RunFolder) -> RetrainConfiguration:
    """The configuration of a retraining; :class:`UserError` names the first invalid key."""
    return parse_config(RetrainConfiguration, run.configuration, str(run.path / "configuration.yaml"))
