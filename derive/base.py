"""The base class of derivation.

A ``Deriver`` turns the result of a search into an :class:`~derive.architecture.Architecture`. It is registered under
the name of its :class:`search_spaces.SearchSpace`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from derive.architecture import VERSION as VERSION  # for packages with a kind of architecture of their own
from derive.architecture import Architecture, identity
from derive.judging import Judge
from dnas.errors import UserError
from dnas.latency.table import LatencyTable
from dnas.progress import Progress
from dnas.runs import RunFolder
from dnas.search import SearchProblem
from dnas.text import encodable
from search_spaces import SearchSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from dnas.report import Section

TOLERANCE = 0.05
"""Largest relative deviation of a derived network's latency from its target."""

TABLE = "table.json"
"""File name of the latency table in the run folder of a search."""

MAX_SAMPLES_PER_NETWORK = 200
"""Random networks that are sampled per requested network before the sampling gives up."""

Space = TypeVar("Space", bound=SearchSpace[Any])
Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class DeriveOptions:
    """User options of a derivation.

    which: name of the architecture; None: the first one of the space. rule: None: the default rule of the space.
        branches: final scales, for multi-branch networks. table: None: the table of the run. target_ms: latency target
        in ms; None: the target of the search. use_target: False: derive without a latency target. candidates: how many
        networks are judged by the weights of the search; None: as configured in the search. judge: None: one that reads
        the weights from the run folder, runs on ``device`` and shows ``progress``.
    """

    which: str | None = None
    rule: str | None = None
    branches: tuple[int, ...] | None = None
    table: LatencyTable | None = None
    target_ms: float | None = None
    use_target: bool = True
    candidates: int | None = None
    judge: Judge | None = None
    device: str = "auto"
    progress: Progress | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derivation:
    """A derived architecture and the rule that derived it.

    Latencies in ms: predicted from the table, target, and measured; None where unknown.
    """

    architecture: Architecture
    rule: str
    latency_ms: float | None = None
    target_ms: float | None = None
    measured_ms: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the predicted latency is within 5 % of the target; None if either is unknown."""
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
        """The derivation as lines of text for the terminal."""
        for part in self.architecture.summary():
            yield "  " + "  ".join(f"{name} {value}" for name, value in part.items())
        if text := self.latency_line():
            yield text

    def latency_line(self) -> str:
        """Target, predicted and measured latency in one line; unknown ones are left out."""
        parts = []
        if self.target_ms is not None:
            parts.append(f"target {self.target_ms:.3f} ms")
        if self.latency_ms is not None:
            deviation = ""
            if self.target_ms is not None:
                suffix = "" if self.reached else ", target not reached"
                deviation = f" ({100 * (self.latency_ms / self.target_ms - 1):+.1f} %{suffix})"
            parts.append(f"predicted {self.latency_ms:.3f} ms{deviation}")
        if self.measured_ms is not None:
            parts.append(f"measured {self.measured_ms:.3f} ms")
        return "   ".join(parts)


class Deriver(ABC, Generic[Space]):
    """Derives discrete networks from the searched parameters of a space.

    ``architectures``: names of the architectures of a search, the default first. ``rules``: names of the derivation
    rules, the default first.
    """

    architectures: ClassVar[tuple[str, ...]]
    rules: ClassVar[tuple[str, ...]] = ("paper",)

    def __init__(self, space: Space) -> None:
        self.space = space

    @abstractmethod
    def draw(self, count: int, seed: int) -> Sequence[Architecture]:
        """Sample ``count`` random networks, spread from fast to slow ones."""

    @abstractmethod
    def predict_ms(self, architecture: Architecture, table: LatencyTable) -> float:
        """Predicted latency of a network in ms; raises :class:`UserError` for a network of another space."""

    @abstractmethod
    def latency_bounds(self, table: LatencyTable) -> Mapping[str, Range]:
        """Latencies in ms of the fastest and the slowest network, by output of the search problem."""

    def latency_bounds_for(self, table: LatencyTable, target_ms: float | None) -> Mapping[str, Range]:
        """Latencies in ms of the fastest network and of one that takes ``target_ms`` or more, else of the slowest one.

        Enough to know whether a target can be met. A space in which the slowest network is hard to find overrides it;
        without a target its upper bounds are those of any networks.
        """
        return self.latency_bounds(table)

    @abstractmethod
    def derived_ms(self, table: LatencyTable) -> Callable[[Mapping[str, Tensor]], Mapping[str, float]]:
        """A function from a problem's logits to the latency in ms of the network derived from them, by output."""

    @abstractmethod
    def derive(self, run: RunFolder, options: DeriveOptions) -> Derivation:
        """The discrete network of a finished search; raises :class:`UserError` for options the space does not have."""

    @abstractmethod
    def inherit(self, problem: SearchProblem, architecture: Architecture) -> nn.Module:
        """The network of ``architecture`` with weights copied from the supernet of ``problem``."""

    def searched_network(self, run: RunFolder, *, rounded: bool = False) -> nn.Module:
        """The network of a finished search with its trained weights, for spaces whose supernet is one network.

        ``rounded``: with the discrete choices of :meth:`derive` instead of the searched values. Raises
        :class:`UserError` for other spaces.
        """
        raise UserError(
            f"{run.path}: a search of {self.space.name}, whose supernet is not a network to evaluate or to measure; "
            "derive a network (dnas derive) and retrain it (dnas retrain)"
        )

    def random_architectures(
        self, count: int, seed: int, latency_range: Range | None = None, table: LatencyTable | None = None
    ) -> list[Architecture]:
        """``count`` distinct random networks; with a range (ms, inclusive), those whose prediction is within it.

        Raises :class:`UserError` if too few are found.
        """
        found: dict[str, Architecture] = {}
        limit = MAX_SAMPLES_PER_NETWORK * count
        sampled = 0
        while len(found) < count and sampled < limit:
            size = count if latency_range is None else max(4 * count, 64)
            for architecture in self.draw(size, seed + sampled):
                if latency_range is None or _within(self._predicted(architecture, table), latency_range):
                    found.setdefault(identity(architecture), architecture)
            sampled += size
        if len(found) < count:
            where = "" if latency_range is None else " between {:.3f} and {:.3f} ms".format(*latency_range)
            raise UserError(
                f"{self.space.name}: found {len(found)} distinct networks{where} in {sampled} random samples, "
                f"expected {count}; ask for fewer networks or a wider range"
            )
        return list(found.values())[:count]

    def _predicted(self, architecture: Architecture, table: LatencyTable | None) -> float:
        if table is None:
            raise UserError(f"{self.space.name}: random networks within a latency range need a latency table")
        return self.predict_ms(architecture, table)

    def finish_search(self, run: RunFolder, judge: Judge) -> None:
        """Add space-specific files to the run folder of a search that has just ended; none by default."""

    def search_summary(self, run: RunFolder) -> list[str]:
        """The result of a finished search in lines for the terminal."""
        return [line] if (line := self.derive(run, DeriveOptions()).latency_line()) else []

    def progress_lines(self, run: RunFolder) -> list[str]:
        """Progress of the search as lines of text, from the run folder; none by default."""
        return []

    def search_sections(self, run: RunFolder) -> list[Section]:
        """The report's sections about a search."""
        from dnas.report import search_section

        section = search_section(run.records())
        return [] if section is None else [section]

    def search_drawings(self, run: RunFolder) -> dict[str, Drawing]:
        """The figures of :meth:`search_sections` by name, to be saved as PNG files."""
        from dnas.report import search_curves

        records = run.records()
        return {"search": search_curves(records)} if records else {}

    def table_of(self, run: RunFolder, options: DeriveOptions) -> LatencyTable | None:
        """The latency table of the options, else that of the run, else None."""
        own = run.path / TABLE
        return options.table or (LatencyTable.load(own) if own.exists() else None)

    def check_options(self, options: DeriveOptions, source: Path) -> tuple[str, str]:
        """The names of the architecture and the rule; raises :class:`UserError` for unknown ones."""
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
    """The provenance entries of an architecture that was derived from a run."""
    return {
        "run": encodable(str(run.path.resolve())),
        "space": str(run.configuration.get("preset", "")),
        "which": which,
        "rule": rule,
        "seed": str(run.seed),
        "epochs": str(len(run.records("epoch"))),
    }


def logits_of(logits: Mapping[str, Tensor], which: str) -> dict[str, Tensor]:
    """The logits of one architecture, by table name; ``logits`` are named ``ARCHITECTURE.TABLE``."""
    prefix = f"{which}."
    return {name.removeprefix(prefix): table for name, table in logits.items() if name.startswith(prefix)}


def _within(value: float, bounds: Range) -> bool:
    return bounds[0] <= value <= bounds[1]
