"""What the command line needs of a search space, whichever it is."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

from dnas.config import to_mapping
from dnas.latency.spec import InventoryItem
from dnas.latency.table import LatencyTable
from dnas.search import BilevelProblem, JointProblem, JointSearchConfig, SearchConfig
from dnas.training import RetrainConfig


class SearchSpace(Protocol):
    """A configured search space: its inventory of operators, and the problem that a search solves."""

    name: str

    @property
    def requires_table(self) -> bool:
        """Whether it cannot be searched without a latency table."""

    @property
    def search(self) -> SearchConfig | JointSearchConfig:
        """How to search."""

    @property
    def retrain(self) -> RetrainConfig:
        """How to retrain what was found."""

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the images whose latency counts."""

    @property
    def num_classes(self) -> int:
        """Number of classes that the space's latencies are for."""

    def configuration(self) -> dict[str, Any]:
        """The whole configuration as plain containers."""

    def inventory(self) -> list[InventoryItem]:
        """Every operator that a network of this space can contain, each signature once."""

    def problem(self, table: LatencyTable | None, seed: int) -> BilevelProblem | JointProblem:
        """The search problem that ``search`` is for, initialised by ``seed``, priced by ``table`` if there is one."""


class TargetSettings(Protocol):
    """What networks of a space are for."""

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the images."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""


class SpaceSettings(Protocol):
    """What every preset holds, whichever space it is of."""

    @property
    def target(self) -> TargetSettings:
        """What its networks are for."""

    @property
    def retrain(self) -> RetrainConfig:
        """How they are retrained."""


Settings = TypeVar("Settings", bound=SpaceSettings)


class ConfiguredSpace(Generic[Settings]):
    """What all spaces do alike with the preset that they were made from."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings, self.name = settings, name

    @property
    def retrain(self) -> RetrainConfig:
        """How to retrain what was found."""
        return self.settings.retrain

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the images whose latency counts."""
        return self.settings.target.input_size

    @property
    def num_classes(self) -> int:
        """Number of classes that the space is for."""
        return self.settings.target.num_classes

    def configuration(self) -> dict[str, Any]:
        """The whole configuration as plain containers."""
        return to_mapping(self.settings)
