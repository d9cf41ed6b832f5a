"""Base class of search spaces.

A search space is a subclass of :class:`SearchSpace` that is registered under the ``space:`` name of its presets, see
:mod:`search_spaces.registry`. Derivation of discrete networks is in :class:`derive.Deriver`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor
from typing_extensions import Self

from dnas.config import Field, config, parse_config, to_mapping
from dnas.errors import UserError
from dnas.input_channels import RGB
from dnas.latency.spec import InventoryItem
from dnas.latency.table import LatencyTable
from dnas.search import LatencyTarget, OneShotConfig, SearchProblems, SearchSettings
from dnas.training import RetrainConfig

_Side = Annotated[int, Field(ge=64, le=8192)]


@config
class TaskConfig:
    """The segmentation task: images of ``input_size`` (height, width) with ``num_classes`` classes, batch size 1.

    channels: of the images; 3 is RGB. A search takes those of its data.
    """

    input_size: tuple[_Side, _Side]
    num_classes: int = Field(ge=2, le=1000)
    channels: int = Field(default=RGB, ge=1, le=64)


class SpaceSettings(Protocol):
    """The settings that presets of all spaces have in common."""

    @property
    def task(self) -> TaskConfig:
        """Input size and classes of the networks."""

    @property
    def latency_target_ms(self) -> float | None:
        """Target for the predicted latency of derived networks, in ms; None for no target."""

    @property
    def retrain(self) -> RetrainConfig:
        """Settings of the retraining of derived networks."""


class DerivedNetworks(Protocol):
    """Latencies of derived networks, in ms by output (such as a combination of branches).

    :class:`derive.Deriver` implements it; latency targets use it.
    """

    def latency_bounds_for(self, table: LatencyTable, target_ms: float | None) -> Mapping[str, tuple[float, float]]:
        """Latencies of the fastest network and of one that takes ``target_ms`` or more, else of the slowest one."""

    def derived_ms(self, table: LatencyTable) -> Callable[[Mapping[str, Tensor]], Mapping[str, float]]:
        """A function from a problem's logits to the latencies of the networks derived from them."""


Settings = TypeVar("Settings", bound=SpaceSettings)


class SearchSpace(ABC, Generic[Settings]):
    """A configured search space: its inventory of operators and its search problem."""

    settings_type: ClassVar[type]
    """The ``@config`` dataclass of a preset; it satisfies :class:`SpaceSettings` and has a key ``space``."""

    requires_table: ClassVar[bool] = True
    """Whether a search needs a latency table."""

    steered: ClassVar[str]
    """Name of the architecture that a latency target applies to."""

    def __init__(self, settings: Settings, name: str) -> None:
        """``name``: name of the preset or path of the file."""
        self.settings, self.name = settings, name

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Self:
        """Parse a configuration; raises :class:`UserError`, prefixed by ``source``, for invalid values."""
        return cls(parse_config(cls.settings_type, values, source), source)

    @property
    @abstractmethod
    def search(self) -> SearchSettings:
        """Settings of the search."""

    @property
    def retrain(self) -> RetrainConfig:
        """Settings of the retraining of derived networks."""
        return self.settings.retrain

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the images for which latencies are measured."""
        return self.settings.task.input_size

    @property
    def num_classes(self) -> int:
        """Number of classes of the space's networks."""
        return self.settings.task.num_classes

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return self.settings.task.channels

    def configuration(self) -> dict[str, Any]:
        """The configuration as plain containers."""
        return to_mapping(self.settings)

    @abstractmethod
    def inventory(self) -> list[InventoryItem]:
        """All operators that networks of this space can contain, each signature once."""

    @abstractmethod
    def problem(self, table: LatencyTable | None, seed: int) -> SearchProblems:
        """The search problem, with weights initialised from ``seed`` and latencies from ``table`` if there is one."""

    def latency_target(self, table: LatencyTable | None, networks: DerivedNetworks) -> LatencyTarget | None:
        """Latency bounds and target of the search; None without a table, or in a one-shot search without a target.

        Raises :class:`UserError` for a target that no network of the space can meet, or one without a table.
        """
        target = self.settings.latency_target_ms
        if table is None:
            if target is not None:
                raise UserError(f"{self.name}: latency_target_ms: given {target:g} ms, but no latency table (--table)")
            return None
        if target is None and isinstance(self.search, OneShotConfig):
            return None  # nothing is steered, so that no bounds are needed
        bounds = networks.latency_bounds_for(table, target)
        if target is not None:
            self._check_target(target, bounds, str(table.source or "the latency table"))
        fastest = [low for low, _ in bounds.values()]
        return LatencyTarget(
            architecture=self.steered,
            target_ms=target,
            fastest_ms=sum(fastest) / len(fastest),
            derived=networks.derived_ms(table),
        )

    def _check_target(self, target: float, bounds: Mapping[str, tuple[float, float]], source: str) -> None:
        where = f"{self.name}: latency_target_ms: given {target:g} ms, but according to {source} the"
        fastest = min(bounds, key=lambda output: bounds[output][0])
        slowest = max(bounds, key=lambda output: bounds[output][1])
        if target < bounds[fastest][0]:
            raise UserError(
                f"{where} fastest network of the space takes {bounds[fastest][0]:.3f} ms ({fastest}): "
                "raise the target, or search a smaller space"
            )
        if target > bounds[slowest][1]:
            raise UserError(
                f"{where} slowest network of the space takes {bounds[slowest][1]:.3f} ms ({slowest}): "
                "lower the target, search a larger space, or leave the target out (null)"
            )

    def describe_prices(self, table: LatencyTable) -> dict[str, Any]:
        """Statistics of the table for this space, as plain containers; empty by default."""
        return {}
