"""The half of a search space that a search needs; the other half is :class:`derive.Deriver`.

A space is a class that derives from :class:`SearchSpace`. It is found by the ``space:`` name of a preset, see
:mod:`search_spaces.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor
from typing_extensions import Self

from dnas.config import Field, config, parse_config, to_mapping
from dnas.errors import UserError
from dnas.latency.spec import InventoryItem
from dnas.latency.table import LatencyTable
from dnas.search import BilevelProblem, JointProblem, JointSearchConfig, LatencyTarget, SearchConfig
from dnas.training import RetrainConfig

_Side = Annotated[int, Field(ge=64, le=8192)]


@config
class TaskConfig:
    """What networks are for: images of ``input_size`` (height, width) in ``num_classes`` classes, one at a time."""

    input_size: tuple[_Side, _Side]
    num_classes: int = Field(ge=2, le=1000)


class SpaceSettings(Protocol):
    """What every preset holds, whichever space it is of."""

    @property
    def task(self) -> TaskConfig:
        """What its networks are for."""

    @property
    def latency_target_ms(self) -> float | None:
        """The latency in ms that derived networks are to have by the table; None for none."""

    @property
    def search(self) -> SearchConfig | JointSearchConfig:
        """How to search."""

    @property
    def retrain(self) -> RetrainConfig:
        """How to retrain what was found."""


class DerivedNetworks(Protocol):
    """What a latency target needs to know of derived networks, in ms by output (such as a combination of branches).

    :class:`derive.Deriver` offers it.
    """

    def latency_bounds(self, table: LatencyTable) -> Mapping[str, tuple[float, float]]:
        """The fastest and the slowest network that can be derived."""

    def derived_ms(self, table: LatencyTable) -> Callable[[Mapping[str, Tensor]], Mapping[str, float]]:
        """A function of a problem's logits: the latencies of the networks that would be derived from them."""


Settings = TypeVar("Settings", bound=SpaceSettings)


class SearchSpace(ABC, Generic[Settings]):
    """A configured search space: its inventory of operators, and the problem that a search solves."""

    settings_type: ClassVar[type]
    """The ``@config`` dataclass of a preset; it satisfies :class:`SpaceSettings` and has a key ``space``."""

    requires_table: ClassVar[bool] = True
    """Whether it cannot be searched without a latency table."""

    steered: ClassVar[str]
    """The architecture whose latency a latency target is for."""

    def __init__(self, settings: Settings, name: str) -> None:
        """``name``: that of the preset or file."""
        self.settings, self.name = settings, name

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Self:
        """Check a configuration; mistakes are a :class:`UserError` that begins with ``source``."""
        return cls(parse_config(cls.settings_type, values, source), source)

    @property
    @abstractmethod
    def search(self) -> SearchConfig | JointSearchConfig:
        """How to search."""

    @property
    def retrain(self) -> RetrainConfig:
        """How to retrain what was found."""
        return self.settings.retrain

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the images whose latency counts."""
        return self.settings.task.input_size

    @property
    def num_classes(self) -> int:
        """Number of classes that the space's networks and latencies are for."""
        return self.settings.task.num_classes

    def configuration(self) -> dict[str, Any]:
        """The whole configuration as plain containers."""
        return to_mapping(self.settings)

    @abstractmethod
    def inventory(self) -> list[InventoryItem]:
        """Every operator that a network of this space can contain, each signature once."""

    @abstractmethod
    def problem(self, table: LatencyTable | None, seed: int) -> BilevelProblem | JointProblem:
        """The search problem that ``search`` is for, initialised by ``seed``, priced by ``table`` if there is one."""

    def latency_target(self, table: LatencyTable | None, networks: DerivedNetworks) -> LatencyTarget | None:
        """What the search is to know of latencies; None without a table.

        Raises :class:`UserError` for a target that no network of the space can have, or one without a table.
        """
        target = self.settings.latency_target_ms
        if table is None:
            if target is not None:
                raise UserError(f"{self.name}: latency_target_ms: given {target:g} ms, but no latency table (--table)")
            return None
        bounds = networks.latency_bounds(table)
        if target is not None:
            self._check_target(target, bounds, str(table.source or "the latency table"))
        fastest, slowest = zip(*bounds.values(), strict=True)
        return LatencyTarget(
            architecture=self.steered,
            target_ms=target,
            fastest_ms=sum(fastest) / len(fastest),
            slowest_ms=sum(slowest) / len(slowest),
            derived=networks.derived_ms(table),
        )

    def _check_target(self, target: float, bounds: Mapping[str, tuple[float, float]], source: str) -> None:
        where = f"{self.name}: latency_target_ms: given {target:g} ms, but by {source} the"
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
        """What the table says about this space as a whole, as plain containers; nothing by default."""
        return {}
