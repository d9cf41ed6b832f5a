"""Derivation of multi-branch networks from a search of the FasterSeg space."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from derive.architecture import Architecture
from derive.base import DeriveOptions, Deriver, Range, logits_of
from derive.judging import Judge
from derive.multi_branch.architecture import MultiBranchArchitecture
from derive.multi_branch.branches import SELECTION, MultiBranchDerivation, branches_text, select
from derive.multi_branch.decidedness import undecided_warning
from derive.multi_branch.decode import Likelihoods, assemble
from derive.multi_branch.decoding import Decoding
from derive.multi_branch.estimating import estimate
from derive.multi_branch.inherit import inherit_weights
from derive.multi_branch.perturbation import perturb
from derive.multi_branch.sampling import sample_architectures
from derive.multi_branch.target import latency_bounds, network_price
from dnas.errors import UserError
from dnas.files import write_json
from dnas.latency.table import LatencyTable
from dnas.runs import RunFolder
from dnas.search import EstimatorSearchConfig, SearchProblem
from search_spaces.fasterseg import (
    ArchitectureParameters,
    FasterSegSpace,
    MultiResolutionSupernet,
    NetworkPlan,
    combination_name,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from dnas.report import Section

STUDENT = "student"


class MultiBranchDeriver(Deriver[FasterSegSpace]):
    """Derives FasterSeg's student and teacher (section 3.4)."""

    architectures = (STUDENT, "teacher")
    rules = ("paper", "published-code")

    def draw(self, count: int, seed: int) -> Sequence[MultiBranchArchitecture]:
        """Sample random students, alternating between the combinations of branches."""
        size, classes = self.space.input_size, self.space.num_classes
        return [
            dataclasses.replace(architecture, num_classes=classes, input_size=size)
            for architecture in sample_architectures(self.space.plan(), count, seed)
        ]

    def predict_ms(self, architecture: Architecture, table: LatencyTable) -> float:
        """The sum of the table entries of its operators."""
        if not isinstance(architecture, MultiBranchArchitecture):
            raise UserError(f"not a network of {self.space.name}, expected a multi-branch network")
        return network_price(self.space.plan(), table.lookup)(architecture)

    def latency_bounds(self, table: LatencyTable) -> Mapping[str, Range]:
        """Latencies of the fastest and slowest student, by combination of branches."""
        bounds = latency_bounds(self.space.plan(), table.lookup)
        return {
            combination_name(ends): (fastest.latency_ms, slowest.latency_ms)
            for ends, (fastest, slowest) in bounds.items()
        }

    def derived_ms(self, table: LatencyTable) -> Callable[[Mapping[str, Tensor]], Mapping[str, float]]:
        """A function from the logits to the latency of the most likely student, by combination of branches."""
        plan = self.space.plan()
        price = network_price(plan, table.lookup)

        def derived(logits: Mapping[str, Tensor]) -> dict[str, float]:
            likelihoods = Likelihoods(logits_of(logits, STUDENT), plan)
            return {
                combination_name(ends): price(assemble(likelihoods, likelihoods.likeliest(ends)))
                for ends in plan.combinations()
            }

        return derived

    def derive(self, run: RunFolder, options: DeriveOptions) -> MultiBranchDerivation:
        """The discrete network of a finished search.

        Without ``branches`` the combination is selected by ACC * (LAT / T) ** w (FasterSeg, Appendix B), from the
        supernet's mIoU for the combination and the latency of its derived network.

        With a latency target, the rule "paper" derives a student for the target and selects among the combinations
        that reach it. The rule "published-code" uses that code's decoder and latency lookup.

        With ``search.candidates`` above 1, that many students near the target are judged by the supernet's weights, and
        the best one is derived.
        """
        which, rule = self.check_options(options, run.path)
        table, plan = self.table_of(run, options), self.space.plan(which)
        if options.branches is not None and options.branches not in plan.combinations():
            known = ", ".join(map(branches_text, plan.combinations()))
            raise UserError(
                f"branches {branches_text(options.branches)}: expected one of {known}, the supernet's heads"
            )
        can_target = which == STUDENT and rule == "paper" and table is not None
        if options.target_ms is not None and not can_target:
            raise UserError(f"{run.path}: a latency target is for the student, with the rule paper and a latency table")
        target = options.target_ms or self.space.settings.latency_target_ms
        combinations = plan.combinations() if options.branches is None else (options.branches,)
        decoding = Decoding(
            run,
            self.space,
            which,
            rule,
            _logits(run, which, plan),
            table,
            target if can_target and options.use_target else None,
            candidates=-(-self._candidates(which, rule, options) // len(combinations)),
            judge=lambda: (
                options.judge or Judge.of_run(run, self, table, device=options.device, progress=options.progress)
            ),
        )
        found = {ends: decoding.derive(ends) for ends in combinations}
        scores = tuple(score for _, score in found.values())
        best = select(scores, decoding.target_ms)
        architecture = found[best.branches][0]
        return MultiBranchDerivation(
            architecture=architecture,
            rule=rule,
            latency_ms=best.latency_ms,
            target_ms=decoding.target_ms,
            scores=scores,
        )

    def _candidates(self, which: str, rule: str, options: DeriveOptions) -> int:
        """How many networks are judged, of all combinations together; only students are, decoded as in the paper."""
        if which != STUDENT or rule != "paper":
            if options.candidates is not None:
                raise UserError("candidates: only students are judged, and only with the rule paper")
            return 1
        return options.candidates or self.space.search.candidates

    def inherit(self, problem: SearchProblem, architecture: Architecture) -> nn.Module:
        """See :func:`derive.multi_branch.inherit_weights`."""
        if not isinstance(architecture, MultiBranchArchitecture):
            raise UserError(f"not a network of {self.space.name}, expected a multi-branch network")
        return inherit_weights(cast("MultiResolutionSupernet", problem.weights), architecture)

    def finish_search(self, run: RunFolder, judge: Judge) -> None:
        """Write what the judged networks contribute, and the scores and branches of every architecture."""
        search = self.space.search
        if isinstance(search, EstimatorSearchConfig):
            table = self.table_of(run, DeriveOptions())
            price = None if table is None else network_price(self.space.plan(), table.lookup)
            estimate(run, self.space, judge, search.judged_networks, price)
        elif search.method == "perturbation":
            perturb(run, self.space, judge, STUDENT)
        content = {}
        for which in self.architectures:
            derivation = self.derive(run, DeriveOptions(which=which, judge=judge))
            chosen = derivation.chosen
            content[which] = {
                "rule": derivation.rule,
                "target_ms": derivation.target_ms,
                "chosen": None if chosen is None else chosen.branches,
                "latency_ms": derivation.latency_ms,
                "scores": [dataclasses.asdict(score) for score in derivation.scores],
            }
        if run.is_owner:
            write_json(run.path / SELECTION, content)

    def search_summary(self, run: RunFolder) -> list[str]:
        """The latency and the branches of the student that is derived by default; a warning if it is undecided."""
        derivation = self.derive(run, DeriveOptions())
        chosen = derivation.chosen
        ends = "" if chosen is None else f", branches {branches_text(chosen.branches)}"
        judged = ", the best of its candidates in the supernet" if chosen is not None and chosen.candidates > 1 else ""
        warning = undecided_warning(_logits(run, STUDENT, self.space.plan(STUDENT)), self.space.search.method)
        return [f"student: {derivation.latency_line()}{ends}{judged}", *([] if warning is None else [warning])]

    def search_sections(self, run: RunFolder) -> list[Section]:
        """The curves of the search, and the branch selection."""
        from derive.multi_branch.report import selection_sections

        return [*super().search_sections(run), *selection_sections(run)]

    def search_drawings(self, run: RunFolder) -> dict[str, Drawing]:
        """The curves of the search and of its monitor, and the judged networks."""
        from derive.multi_branch.report import judged_students
        from dnas.report import has_monitor, monitor_curves

        found, records = super().search_drawings(run), run.records()
        if has_monitor(records):
            found["monitor"] = monitor_curves(records)
        judged = judged_students(run) if (run.path / SELECTION).exists() else None
        return found if judged is None else {**found, "judged": judged}


def _logits(run: RunFolder, which: str, plan: NetworkPlan) -> dict[str, Tensor]:
    """The searched logits of an architecture; raises :class:`UserError` unless they are those of ``plan``."""
    logits = logits_of(run.load_weights("architecture"), which)
    if not logits:
        raise UserError(
            f"{run.path}: holds no architecture named {which}, expected student or teacher; if the search was "
            "interrupted, continue it with dnas search --resume"
        )
    parameters = ArchitectureParameters(
        plan.grid, len(plan.operators), plan.ratios, end_ratio=plan.end_ratio, noise=0.0
    )
    expected = {name: tuple(table.shape) for name, table in parameters.named_logits().items()}
    for name in dict.fromkeys([*expected, *logits]):
        given = logits.get(name)
        if given is None and name.startswith("gamma"):
            continue  # the widest ratios, if they were not searched
        if given is None or tuple(given.shape) != expected.get(name, tuple(given.shape)):
            shape = "nothing" if given is None else f"shape {tuple(given.shape)}"
            raise UserError(f"{run.path}: logits {which}.{name}: given {shape}, expected shape {expected.get(name)}")
        if not given.is_floating_point() or not bool(given.isfinite().all()):
            raise UserError(f"{run.path}: logits {which}.{name}: expected finite numbers; the file is damaged")
    return {name: table for name, table in logits.items() if name in expected}
