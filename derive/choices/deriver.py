"""Derivation of a plain network from a search of choices."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from derive.architecture import Architecture
from derive.base import TOLERANCE, Derivation, DeriveOptions, Deriver, Range, logits_of, provenance_of
from derive.choices.architecture import ChoicesArchitecture, architecture_of
from derive.choices.candidates import Candidates, distinct_samples, saved_candidates
from derive.choices.estimator import estimate
from derive.choices.nearest import walk_to_target
from derive.judging import Judge, judged_records
from dnas.choices import RateChoice, plain_network
from dnas.data.seeding import mix_seed
from dnas.errors import UserError
from dnas.latency.table import LatencyTable
from dnas.pricing import ExpectedLatency
from dnas.runs import RunFolder
from dnas.search import EstimatorSearchConfig, SearchProblem
from search_spaces.choices import ARCHITECTURE, ChoiceSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from dnas.report import Section


_SAMPLE_GAP = 0.05
"""By what share the options of noisy logits may miss the largest sum."""
UNPROVEN = "the best options that were found, not proven to be the likeliest ones near the target"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceDerivation(Derivation):
    """The derived options.

    candidates: how many networks the supernet judged, ``supernet_miou``: its mIoU of the best one. proven: whether the
    options are proven to be the likeliest ones near the target; None without a target.
    """

    architecture: ChoicesArchitecture
    candidates: int = 1
    supernet_miou: float | None = None
    proven: bool | None = None

    def to_mapping(self) -> dict[str, Any]:
        """The content of ``dnas derive --json``."""
        judged = {"candidates": self.candidates, "supernet_miou": self.supernet_miou, "proven": self.proven}
        return {**super().to_mapping(), "options": self.architecture.options, **judged}

    def latency_line(self) -> str:
        """Target, latency and candidates in one line; unknown ones are left out."""
        parts = [super().latency_line()]
        if self.supernet_miou is not None:
            parts.append(f"the best of {self.candidates} by the supernet's mIoU, {100 * self.supernet_miou:.1f} %")
        if self.proven is False:
            parts.append(UNPROVEN)
        return "   ".join(part for part in parts if part)


class ChoiceDeriver(Deriver[ChoiceSpace[Any]]):
    """Takes the likeliest option of every choice, or the likeliest options that meet a latency target."""

    architectures = (ARCHITECTURE,)

    def __init__(self, space: ChoiceSpace[Any]) -> None:
        super().__init__(space)
        self._latencies: dict[int, tuple[LatencyTable, ExpectedLatency]] = {}

    def draw(self, count: int, seed: int) -> Sequence[ChoicesArchitecture]:
        """Uniformly drawn options; the limit of widths and repetitions rises from network to network."""
        generator = random.Random(mix_seed("check", seed))
        found = []
        for number in range(count):
            indices = {}
            for name, choice in self.space.choices.items():
                size = len(choice.labels)
                limit = max(1, round((number + 0.5) / count * size)) if choice.ordered else size
                indices[name] = generator.randrange(limit)
            found.append(architecture_of(self.space, indices))
        return found

    def predict_ms(self, architecture: Architecture, table: LatencyTable) -> float:
        """The sum of the table's entries of its units."""
        return self._latency(table).at(self._own(architecture).indices(self.space))

    def latency_bounds(self, table: LatencyTable) -> Mapping[str, Range]:
        """The latencies of the fastest and the slowest network, from the integer programme."""
        latency, programme = self._latency(table), self.space.programme(table)
        return {"logits": (latency.at(programme.fastest()), latency.at(programme.slowest()))}

    def latency_bounds_for(self, table: LatencyTable, target_ms: float | None) -> Mapping[str, Range]:
        """As in the base class, by the integer programme: in a large space the slowest network takes a minute."""
        latency, programme = self._latency(table), self.space.programme(table)
        found = programme.at_least(target_ms or 0.0)
        if found is None:
            return self.latency_bounds(table)
        # The solver meets the latency up to a tolerance.
        return {"logits": (latency.at(programme.fastest()), max(latency.at(found), target_ms or 0.0))}

    def derived_ms(self, table: LatencyTable) -> Callable[[Mapping[str, Tensor]], Mapping[str, float]]:
        """A function from the logits to the latency of the likeliest options."""
        latency = self._latency(table)
        return lambda logits: {"logits": latency.at(self.likeliest(logits_of(logits, ARCHITECTURE)))}

    def derive(self, run: RunFolder, options: DeriveOptions) -> ChoiceDerivation:
        """The likeliest options; with a latency target those within 5 % of it, if there are any.

        With ``candidates`` above 1 (default: ``search.candidates``), so many samples, near the target if there is one,
        are judged by the supernet's weights, and the one of the highest mIoU is derived.
        """
        if options.branches is not None:
            raise UserError(f"{run.path}: a network with choices has no branches; leave --branches out")
        # There is one network; --which student refers to it, too.
        which, rule = self.check_options(
            dataclasses.replace(options, which=ARCHITECTURE) if options.which == "student" else options, run.path
        )
        table = self.table_of(run, options)
        target = (options.target_ms or self.space.settings.latency_target_ms) if options.use_target else None
        if options.target_ms is not None and table is None:
            raise UserError(f"{run.path}: a latency target needs a latency table (--table)")
        meet = None if target is None or table is None else _MeetTarget(self, target, table)
        architectures, proven = self._candidates(run, options, meet)
        best, count, miou = architectures[0], len(architectures), None
        if count > 1:
            judge = options.judge or Judge.of_run(run, self, table, device=options.device, progress=options.progress)
            notes = [
                {
                    "kind": "candidate",
                    "target_ms": target,
                    "latency_ms": None if table is None else self.predict_ms(one, table),
                }
                for one in architectures
            ]
            mious = judge.miou(architectures, "judging candidates", notes)
            miou = max(mious)
            best = architectures[mious.index(miou)]
        architecture = dataclasses.replace(best, provenance=provenance_of(run, which, rule))
        if miou is not None:
            architecture = architecture.with_provenance(candidates=count, supernet_miou=round(miou, 6))
        if proven is False:
            architecture = architecture.with_provenance(optimum=UNPROVEN)
        return ChoiceDerivation(
            architecture=architecture,
            rule=rule,
            latency_ms=None if table is None else self.predict_ms(architecture, table),
            target_ms=None if table is None else target,
            candidates=count,
            supernet_miou=miou,
            proven=proven,
        )

    def _candidates(
        self, run: RunFolder, options: DeriveOptions, meet: _MeetTarget | None
    ) -> tuple[list[ChoicesArchitecture], bool | None]:
        """The candidates, and with a target whether the first is proven to be the likeliest network near it.

        Those for the target of the search are found once, at its end.
        """
        wanted = options.candidates or self.space.search.candidates
        if meet is None:
            return self._found(run, wanted, None), None
        saved = None if run.is_owner or options.table is not None else saved_candidates(run)
        if saved is not None and (saved.target_ms, saved.wanted) == (meet.target_ms, wanted):
            like = architecture_of(self.space, {})
            known = [dataclasses.replace(like, options=one).indices(self.space) for one in saved.options]
            return [architecture_of(self.space, indices) for indices in known], saved.proven
        found = self._found(run, wanted, meet)
        if run.is_owner:
            kept = tuple(one.options for one in found)
            Candidates(target_ms=meet.target_ms, wanted=wanted, proven=meet.proven, options=kept).save(run)
        return found, meet.proven

    def _found(self, run: RunFolder, count: int, meet: _MeetTarget | None) -> list[ChoicesArchitecture]:
        """The likeliest network and distinct samples; with a target only those that reach it, if any does."""
        logits = self.searched(run)
        rates = frozenset(name for name, choice in self.space.choices.items() if isinstance(choice, RateChoice))
        target = 0 if meet is None else round(1e6 * meet.target_ms)
        found = distinct_samples(
            logits,
            rates,
            count,
            torch.Generator().manual_seed(mix_seed("candidates", run.seed, target)),
            self.likeliest if meet is None else meet.likeliest,
            self.likeliest if meet is None else meet.sample,
            lambda options: architecture_of(self.space, options).indices(self.space),
        )
        reached = [options for options in found if meet is None or meet.reaches(options)]
        return [architecture_of(self.space, options) for options in reached or found[:1]]

    def searched(self, run: RunFolder) -> dict[str, Tensor]:
        """The logits of a finished search, by choice."""
        logits = logits_of(run.load_weights("architecture"), ARCHITECTURE)
        if logits.keys() != self.space.choices.keys():
            raise UserError(f"{run.path}: the saved choices are not those of its configuration")
        return logits

    def likeliest(self, logits: Mapping[str, Tensor]) -> dict[str, int]:
        """The likeliest option of every choice; rates are rounded as the space says."""
        rates = {}
        found = {}
        for name, choice in self.space.choices.items():
            if isinstance(choice, RateChoice):
                rates[name] = min(max(float(logits[name]), 1.0), choice.upper)
            else:
                found[name] = int(logits[name].argmax())
        if rates:
            sizes = self.space.priced.sizes
            rounded = self.space.rounded(rates)
            found |= {name: min(max(rounded[name], 1), sizes[name]) - 1 for name in rates}
        return found

    def scores(self, logits: Mapping[str, Tensor]) -> dict[str, list[float]]:
        """Log-probabilities of every choice's options; of a rate minus the distance, except for the rounded rate."""
        likeliest = self.likeliest(logits)
        found = {}
        for name, choice in self.space.choices.items():
            if isinstance(choice, RateChoice):
                distances = [-abs(index + 1 - float(logits[name])) for index in range(len(choice.labels))]
                distances[likeliest[name]] = 0.0
                found[name] = distances
            else:
                found[name] = logits[name].double().log_softmax(-1).tolist()
        return found

    def inherit(self, problem: SearchProblem, architecture: Architecture) -> nn.Module:
        """The plain network with the weights of the searched one."""
        network = problem.weights.get_submodule("network")
        indices = self._own(architecture).indices(self.space)
        return plain_network(network, indices, seen=self.space.seen(indices))

    def finish_search(self, run: RunFolder, judge: Judge) -> None:
        """Write what the options of judged networks contribute, and find and judge the candidates."""
        search, table = self.space.search, self.table_of(run, DeriveOptions())
        if isinstance(search, EstimatorSearchConfig):
            assert table is not None  # the search has needed one
            likeliest = self.likeliest(self.searched(run))
            rates = {name: likeliest[name] for name, one in self.space.choices.items() if isinstance(one, RateChoice)}
            price = functools.partial(self.predict_ms, table=table)
            estimate(run, self.space, judge, search.judged_networks, rates=rates, price=price)
        if search.candidates > 1 or self.space.settings.latency_target_ms is not None:
            self.derive(run, DeriveOptions(judge=judge))

    def search_sections(self, run: RunFolder) -> list[Section]:
        """The curves of the search, the probabilities of all options, and the judged networks."""
        from derive.choices.report import choice_section, judged_section

        return [
            *super().search_sections(run),
            *choice_section(self.space, self.searched(run)),
            *judged_section(run, self.judged_drawing(run)),
            *self.more_sections(run),
        ]

    def search_drawings(self, run: RunFolder) -> dict[str, Drawing]:
        """The curves of the search, and the judged networks."""
        found, judged = super().search_drawings(run), self.judged_drawing(run)
        return found if judged is None else {**found, "judged": judged}

    def judged_drawing(self, run: RunFolder) -> Drawing | None:
        """The judged networks and the best candidate, which is derived; None if there are none."""
        from derive.judged_networks import judged_drawing

        candidates = [
            (one.latency_ms, one.miou)
            for one in judged_records(run)
            if one.kind == "candidate" and one.latency_ms is not None
        ]
        chosen = max(candidates, key=lambda point: point[1], default=None)
        return judged_drawing(run, chosen, self.space.settings.latency_target_ms)

    def more_sections(self, run: RunFolder) -> list[Section]:
        """Sections of a particular space; none."""
        return []

    def _own(self, architecture: Architecture) -> ChoicesArchitecture:
        if not isinstance(architecture, ChoicesArchitecture) or architecture.space != self.space.description():
            raise UserError(f"not a network of {self.space.name}")
        return architecture

    def _latency(self, table: LatencyTable) -> ExpectedLatency:
        """The latency function of a table; the last one is kept."""
        known = self._latencies.get(id(table))
        if known is None or known[0] is not table:
            self._latencies = {id(table): (table, self.space.latency(table))}
            known = self._latencies[id(table)]
        return known[1]


class _MeetTarget:
    """The likeliest options near a latency target, of any logits.

    proven: whether all that :meth:`likeliest` has returned are proven to be the likeliest ones.
    """

    def __init__(self, deriver: ChoiceDeriver, target_ms: float, table: LatencyTable) -> None:
        self._deriver, self.target_ms = deriver, target_ms
        self._latency = deriver.space.latency(table).at
        self._programme = deriver.space.programme(table)
        self.proven = True

    def likeliest(self, logits: Mapping[str, Tensor]) -> dict[str, int]:
        """Options within 2 % of the target, else within 5 %.

        Where the integer programme finds none, not even in a large space in which its time may be over, options are
        changed one by one; the nearest ones are returned.
        """
        options, proven = self._near(logits)
        self.proven &= proven
        return options

    def sample(self, logits: Mapping[str, Tensor]) -> dict[str, int]:
        """The same of noisy logits, whose largest sum may be missed a little: to prove it takes most of the time."""
        return self._near(logits, _SAMPLE_GAP)[0]

    def _near(self, logits: Mapping[str, Tensor], gap: float = 0.0) -> tuple[dict[str, int], bool]:
        likeliest = self._deriver.likeliest(logits)
        if self.reaches(likeliest):
            return likeliest, True
        scores = self._deriver.scores(logits)
        for tolerance in (0.4 * TOLERANCE, TOLERANCE):
            bounds = (self.target_ms * (1 - tolerance), self.target_ms * (1 + tolerance))
            found = self._programme.likeliest(scores, bounds, gap)
            if found is not None and self.reaches(found):
                return dict(found), found.proven
        return walk_to_target(self._latency, scores, likeliest, self.target_ms, 0.4 * TOLERANCE), False

    def reaches(self, options: Mapping[str, int]) -> bool:
        """Whether options are within 5 % of the target."""
        return abs(self._latency(options) / self.target_ms - 1) <= TOLERANCE
