"""What every kind of derived network, and every space's way to it, has in common.

``Architecture`` is a discrete network as a file. ``Deriver`` is the half of a search space that begins where the search
ends; the other half is :class:`search_spaces.SearchSpace`, of the same name.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

import networkx as nx
from torch import Tensor, nn
from typing_extensions import Self

from dnas.config import Field, to_mapping
from dnas.errors import UserError
from dnas.files import dump_yaml, write_text
from dnas.latency.spec import OperatorSpec
from dnas.latency.table import LatencyTable
from dnas.runs import RunFolder
from dnas.search import SearchProblem
from search_spaces import SearchSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from dnas.report import Section

VERSION = 1
"""Of architecture files."""

TOLERANCE = 0.05
"""How far, relatively, a derived network may be from its latency target."""

TABLE = "table.json"
"""The latency table in the run folder of a search."""

MOST_DRAWS = 200
"""Random networks that are drawn for one that is wanted within a range of latencies."""

Count = Annotated[int, Field(ge=1, le=100_000)]
Space = TypeVar("Space", bound=SearchSpace[Any])
Range = tuple[float, float]


class Architecture(ABC):
    """A discrete network: an explicit, versioned YAML file that builds an ``nn.Module``.

    Subclasses are ``@config`` dataclasses, registered by their ``kind`` (:mod:`derive.registry`). ``num_classes`` and
    ``input_size`` (height, width) are those it was searched for; ``provenance`` says where it came from.
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
        """Raise :class:`UserError` unless its parts fit together; there is nothing to check by default."""

    @abstractmethod
    def build(self, num_classes: int) -> nn.Module:
        """The network with fresh weights: images (N, 3, H, W) -> logits (N, num_classes, H, W)."""

    @abstractmethod
    def signatures(self, num_classes: int, input_size: tuple[int, int]) -> list[OperatorSpec]:
        """The entries of a latency table that price it."""

    @abstractmethod
    def graph(self) -> nx.DiGraph:
        """Its parts (nodes, each with a ``label``) and the maps between them (edges)."""

    @abstractmethod
    def summary(self) -> list[dict[str, Any]]:
        """Its parts as plain data, for people and programs."""

    def drawing(self, title: str = "") -> Drawing:
        """A figure of the network; by default its graph in layers."""
        from derive.drawing import graph_drawing

        return graph_drawing(self.graph(), title)

    def caption(self, name: str) -> str:
        """What the drawing shows, in a sentence or two."""
        return f"{name}: the parts of the derived network, from the image (left) to the logits (right)."

    def with_provenance(self, **entries: object) -> Self:
        """The same with further entries of its provenance."""
        provenance = {**self.provenance, **{name: str(value) for name, value in entries.items()}}
        return dataclasses.replace(self, provenance=provenance)  # type: ignore[type-var]


@dataclasses.dataclass(frozen=True)
class DeriveOptions:
    """What a person may ask of a derivation.

    which: the architecture, None for the space's first. rule: None for its default. branches: final scales, for
        networks of several branches. table: None for the run's own. target_ms: a latency target in ms, None for the
        search's. use_target: whether there is to be one at all.
    """

    which: str | None = None
    rule: str | None = None
    branches: tuple[int, ...] | None = None
    table: LatencyTable | None = None
    target_ms: float | None = None
    use_target: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derivation:
    """A derived architecture; latencies in ms: predicted by the table, wanted, and measured, as far as they are known.

    rule: how it was derived.
    """

    architecture: Architecture
    rule: str
    latency_ms: float | None = None
    target_ms: float | None = None
    measured_ms: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the predicted latency is within 5 % of the target; None without either."""
        if self.target_ms is None or self.latency_ms is None:
            return None
        return abs(self.latency_ms / self.target_ms - 1) <= TOLERANCE

    def to_mapping(self) -> dict[str, Any]:
        """The content of ``dnas derive --json``."""
        return {
            "rule": self.rule,
            "branches": [],
            "latency_ms": self.latency_ms,
            "target_ms": self.target_ms,
            "measured_ms": self.measured_ms,
        }

    def lines(self) -> Iterator[str]:
        """What was derived, for the person at the terminal."""
        for part in self.architecture.summary():
            yield "  " + "  ".join(f"{name} {value}" for name, value in part.items())
        if text := self.latency_line():
            yield text

    def latency_line(self) -> str:
        """Target, prediction and measurement in one line, as far as they are known."""
        parts = []
        if self.target_ms is not None:
            parts.append(f"target {self.target_ms:.3f} ms")
        if self.latency_ms is not None:
            off = ""
            if self.target_ms is not None:
                missed = "" if self.reached else ", target not reached"
                off = f" ({100 * (self.latency_ms / self.target_ms - 1):+.1f} %{missed})"
            parts.append(f"predicted {self.latency_ms:.3f} ms{off}")
        if self.measured_ms is not None:
            parts.append(f"measured {self.measured_ms:.3f} ms")
        return "   ".join(parts)


class Deriver(ABC, Generic[Space]):
    """From the searched parameters of a space to its discrete networks.

    ``architectures``: the names of those that a search holds, the default first. ``rules``: how they can be derived,
    the default first.
    """

    architectures: ClassVar[tuple[str, ...]]
    rules: ClassVar[tuple[str, ...]] = ("paper",)

    def __init__(self, space: Space) -> None:
        self.space = space

    @abstractmethod
    def draw(self, count: int, seed: int) -> Sequence[Architecture]:
        """``count`` random networks, spread from the fastest to the slowest ones."""

    @abstractmethod
    def predict_ms(self, architecture: Architecture, table: LatencyTable) -> float:
        """The latency of a network by ``table``, in ms; one of another space is a :class:`UserError`."""

    @abstractmethod
    def latency_bounds(self, table: LatencyTable) -> Mapping[str, Range]:
        """By output of the search problem, the latencies in ms of the fastest and the slowest network."""

    @abstractmethod
    def derived_ms(self, table: LatencyTable) -> Callable[[Mapping[str, Tensor]], Mapping[str, float]]:
        """A function of a problem's logits: by output, the latency in ms of the network that would be derived."""

    @abstractmethod
    def derive(self, run: RunFolder, options: DeriveOptions) -> Derivation:
        """The discrete network of a finished search; :class:`UserError` for options that the space does not have."""

    @abstractmethod
    def inherit(self, problem: SearchProblem, architecture: Architecture) -> nn.Module:
        """The network of ``architecture`` with the weights that its choices have in the problem's network."""

    def random_architectures(
        self, count: int, seed: int, latency_range: Range | None = None, table: LatencyTable | None = None
    ) -> list[Architecture]:
        """``count`` different random networks; with a range, those that ``table`` predicts within it (ms, inclusive).

        Raises :class:`UserError` where the space does not seem to have as many.
        """
        found: dict[str, Architecture] = {}
        most = MOST_DRAWS * count
        drawn = 0
        while len(found) < count and drawn < most:
            size = count if latency_range is None else max(4 * count, 64)
            for architecture in self.draw(size, seed + drawn):
                if latency_range is None or _within(self._predicted(architecture, table), latency_range):
                    found.setdefault(identity(architecture), architecture)
            drawn += size
        if len(found) < count:
            where = "" if latency_range is None else " between {:.3f} and {:.3f} ms".format(*latency_range)
            raise UserError(
                f"{self.space.name}: found {len(found)} different networks{where} among {drawn} random ones, "
                f"{count} are wanted: ask for fewer, or for a wider range"
            )
        return list(found.values())[:count]

    def _predicted(self, architecture: Architecture, table: LatencyTable | None) -> float:
        if table is None:
            raise UserError(f"{self.space.name}: random networks within a range of latencies need a latency table")
        return self.predict_ms(architecture, table)

    def finish_search(self, run: RunFolder) -> None:
        """Add to the run folder of a search that has just ended what only the space knows; nothing by default."""

    def search_summary(self, run: RunFolder) -> str:
        """One line on what a finished search found, for the person at the terminal."""
        derivation = self.derive(run, DeriveOptions())
        return derivation.latency_line()

    def progress_lines(self, run: RunFolder) -> list[str]:
        """What the run folder tells of how the search came on; nothing by default."""
        return []

    def search_sections(self, run: RunFolder) -> list[Section]:
        """The report's sections on a search."""
        from dnas.report import search_section

        section = search_section(run.records())
        return [] if section is None else [section]

    def search_drawings(self, run: RunFolder) -> dict[str, Drawing]:
        """The figures of :meth:`search_sections` by name, for PNG files."""
        from dnas.report import search_curves

        records = run.records()
        return {"search": search_curves(records)} if records else {}

    def table_of(self, run: RunFolder, options: DeriveOptions) -> LatencyTable | None:
        """The table that was asked for, or the run's own."""
        own = run.path / TABLE
        return options.table or (LatencyTable.load(own) if own.exists() else None)

    def check_options(self, options: DeriveOptions, source: Path) -> tuple[str, str]:
        """The architecture and the rule that are meant; :class:`UserError` for unknown ones."""
        which = options.which or self.architectures[0]
        if which not in self.architectures:
            raise UserError(
                f"{source}: holds no architecture named {which}, expected {' or '.join(self.architectures)}"
            )
        rule = options.rule or self.rules[0]
        if rule not in self.rules:
            raise UserError(f"{source}: rule {rule!r}: expected {' or '.join(self.rules)}")
        return which, rule


def provenance_of(run: RunFolder, which: str, rule: str) -> dict[str, str]:
    """Where an architecture came from, as its file keeps it."""
    return {
        "run": str(run.path.resolve()),
        "space": str(run.configuration.get("preset", "")),
        "which": which,
        "rule": rule,
        "seed": str(run.seed),
        "epochs": str(len(run.records("epoch"))),
    }


def logits_of(logits: Mapping[str, Tensor], which: str) -> dict[str, Tensor]:
    """The tables of one architecture by their own names, of a problem's logits (``ARCHITECTURE.TABLE``)."""
    prefix = f"{which}."
    return {name.removeprefix(prefix): table for name, table in logits.items() if name.startswith(prefix)}


def identity(architecture: Architecture) -> str:
    """A text that is equal for networks that are the same but for their provenance and origin."""
    return repr(architecture.summary())


def _within(value: float, bounds: Range) -> bool:
    return bounds[0] <= value <= bounds[1]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value
