"""Deriving from a run: every combination of branches decoded, led to the latency target, scored, and one chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from derive import (
    TOLERANCE,
    Architecture,
    Choices,
    TargetedDecoder,
    decode,
    decode_as_published,
    latency_bounds,
    network_price,
    predicted_latency_ms,
)
from derive.decode import Likelihoods, assemble
from dnas.errors import UserError
from dnas.files import read_json, write_json
from dnas.latency import LatencyTable
from dnas.runs import RunFolder
from dnas.search import LatencyGoal
from dnas.supernet import combination_name
from search_spaces import FasterSegSpace, space_from

TABLE = "table.json"
SELECTION = "selection.json"
STUDENT = "student"


@dataclass(frozen=True)
class BranchScore:
    """One combination of branches: mIoU in the supernet, latency of the derived network, and Appendix B's target.

    ``argmax_ms`` is what the likeliest choices alone would take. Where the network was led to a latency target,
    ``changes`` names what is not the likeliest, ``lost_log_probability`` what that cost, and ``reached`` says whether
    it is within 5 %; without a target ``reached`` is None.
    """

    branches: tuple[int, ...]
    miou: float | None
    latency_ms: float | None
    score: float | None
    argmax_ms: float | None = None
    lost_log_probability: float = 0.0
    changes: tuple[str, ...] = ()
    reached: bool | None = None


@dataclass(frozen=True)
class Derivation:
    """A derived architecture with its predicted latency and, where branches were chosen, the scores of all."""

    architecture: Architecture
    rule: str
    latency_ms: float | None
    scores: tuple[BranchScore, ...] = ()
    target_ms: float | None = None
    measured_ms: float | None = None

    @property
    def chosen(self) -> BranchScore | None:
        """The score of the combination that was derived."""
        ends = tuple(branch.scale for branch in self.architecture.branches)
        return next((score for score in self.scores if score.branches == ends), None)

    def to_mapping(self) -> dict[str, Any]:
        """The content of ``dnas derive --json``."""
        return {
            "rule": self.rule,
            "branches": self.architecture.summary(),
            "latency_ms": self.latency_ms,
            "target_ms": self.target_ms,
            "measured_ms": self.measured_ms,
            "scores": [dataclasses.asdict(score) for score in self.scores],
        }


def latency_goal(space: FasterSegSpace, table: LatencyTable) -> LatencyGoal:
    """What a search of ``space`` is to know of its student's latencies by ``table``.

    Raises :class:`UserError` for a target that no network of the space can have, with what the nearest one takes.
    """
    plan, end_ratio = space.plan(), space.end_ratios[STUDENT]
    bounds = latency_bounds(plan, end_ratio, table.lookup)
    fastest = {branches: pair[0].latency_ms for branches, pair in bounds.items()}
    slowest = {branches: pair[1].latency_ms for branches, pair in bounds.items()}
    target = space.settings.target.target_ms
    if target is not None:
        where = f"{space.name}: target.target_ms: given {target:g} ms, but by {table.source or 'the latency table'} the"
        if target < min(fastest.values()):
            ends = min(fastest, key=lambda branches: fastest[branches])
            raise UserError(
                f"{where} fastest network of the space takes {fastest[ends]:.3f} ms (branches {_text(ends)}): "
                "raise the target, or search a smaller space (network.ratios, network.student_ratio)"
            )
        if target > max(slowest.values()):
            ends = max(slowest, key=lambda branches: slowest[branches])
            raise UserError(
                f"{where} slowest network of the space takes {slowest[ends]:.3f} ms (branches {_text(ends)}): "
                "lower the target, search a larger space, or leave the target out (null)"
            )
    choices = Choices(plan.grid, plan.operators, plan.ratios, end_ratio)
    price = network_price(plan, table.lookup)

    def derived(logits: Mapping[str, Tensor]) -> dict[str, float]:
        likelihoods = Likelihoods(_of(logits, STUDENT), choices)
        return {
            combination_name(ends): price(assemble(likelihoods, likelihoods.likeliest(ends)))
            for ends in plan.combinations()
        }

    return LatencyGoal(
        architecture=STUDENT,
        target_ms=target,
        fastest_ms=sum(fastest.values()) / len(fastest),
        slowest_ms=sum(slowest.values()) / len(slowest),
        derived=derived,
    )


def derive_from_run(
    path: Path,
    which: str,
    branches: tuple[int, ...] | None = None,
    table: LatencyTable | None = None,
    *,
    rule: str = "paper",
    target_ms: float | None = None,
    use_target: bool = True,
) -> Derivation:
    """The discrete architecture of a finished search.

    Without ``branches`` the combination is chosen by ACC * (LAT / T) ** w (FasterSeg Appendix B) from the mIoU that the
    combinations have in the supernet and the latencies of their derived networks. ``table`` defaults to the run's own.

    A student with a latency target (``target_ms``, else the run's; none if not ``use_target``) is led to it under the
    rule "paper", and chosen among the combinations that reach it. "published-code" is that code's decoder and pricing.
    """
    run = RunFolder.open(path, "search")
    space = space_from(run.configuration.get("space", {}), str(path / "configuration.yaml"))
    if not isinstance(space, FasterSegSpace):
        raise UserError(f"{path}: a search of {space.name} cannot be derived")
    logits = _logits(run, which)
    plan = space.plan()
    if table is None and (path / TABLE).exists():
        table = LatencyTable.load(path / TABLE)
    if branches is not None and branches not in plan.combinations():
        known = ", ".join(map(_text, plan.combinations()))
        raise UserError(f"branches {_text(branches)}: the supernet has heads for {known}")
    target = target_ms or space.settings.target.target_ms if which == STUDENT and use_target else None
    if target_ms is not None and (which != STUDENT or rule != "paper" or table is None):
        raise UserError(f"{path}: a latency target is for the student, by the rule paper, with a latency table")
    job = _Job(run, space, which, rule, logits, table, target if rule == "paper" and table is not None else None)
    wanted = plan.combinations() if branches is None else (branches,)
    found = [job.derive(ends) for ends in wanted]
    scores = tuple(score for _, score in found)
    best = _choose(scores, job.target_ms)
    architecture = next(architecture for architecture, score in found if score is best)
    return Derivation(architecture, rule, best.latency_ms, scores, job.target_ms)


def save_selection(path: Path) -> None:
    """Write the scores and the choice of branches of every architecture of a finished search into its run folder."""
    content = {}
    for which in (STUDENT, "teacher"):
        derivation = derive_from_run(path, which)
        chosen = derivation.chosen
        content[which] = {
            "rule": derivation.rule,
            "target_ms": derivation.target_ms,
            "chosen": None if chosen is None else chosen.branches,
            "latency_ms": derivation.latency_ms,
            "scores": [dataclasses.asdict(score) for score in derivation.scores],
        }
    write_json(path / SELECTION, content)


def load_selection(path: Path) -> dict[str, Any]:
    """The content of a run's selection, by architecture; nothing where the search has not ended."""
    if not (path / SELECTION).exists():
        return {}
    content: dict[str, Any] = read_json(path / SELECTION, "selection of branches")
    return content


@dataclass(frozen=True)
class _Job:
    """What every combination of branches is derived from."""

    run: RunFolder
    space: FasterSegSpace
    which: str
    rule: str
    logits: Mapping[str, Tensor]
    table: LatencyTable | None
    target_ms: float | None

    def derive(self, ends: tuple[int, ...]) -> tuple[Architecture, BranchScore]:
        """The network of a combination of branches, and its score."""
        plan, end_ratio = self.space.plan(), self.space.end_ratios[self.which]
        provenance: dict[str, object] = {
            "run": self.run.path.resolve(),
            "space": self.run.configuration.get("preset", ""),
            "which": self.which,
            "rule": self.rule,
            "seed": self.run.seed,
            "epochs": len(self.run.records("epoch")),
        }
        if self.target_ms is not None and self.table is not None:
            found = TargetedDecoder(self.logits, plan, end_ratio, self.table.lookup).decode(ends, self.target_ms)
            chosen = found.chosen
            provenance |= {
                "target_ms": self.target_ms,
                "predicted_ms": round(chosen.latency_ms, 6),
                "argmax_ms": round(found.likeliest.latency_ms, 6),
                "lost_log_probability": round(chosen.lost, 6),
            }
            score = BranchScore(
                ends,
                *self._scored(ends, chosen.latency_ms),
                argmax_ms=found.likeliest.latency_ms,
                lost_log_probability=chosen.lost,
                changes=found.changes,
                reached=found.reaches(self.target_ms),
            )
            texts = {name: str(value) for name, value in provenance.items()}
            return self._complete(dataclasses.replace(chosen.architecture, provenance=texts)), score
        decoder = decode if self.rule == "paper" else decode_as_published
        choices = Choices(plan.grid, plan.operators, plan.ratios, end_ratio)
        architecture = self._complete(decoder(self.logits, choices, ends, provenance))
        ms = None if self.table is None else predicted_latency_ms(architecture, self.table.lookup, self.rule)
        return architecture, BranchScore(ends, *self._scored(ends, ms), argmax_ms=ms)

    def _complete(self, architecture: Architecture) -> Architecture:
        size = self.space.input_size
        return dataclasses.replace(architecture, num_classes=self.space.num_classes, input_size=size)

    def _scored(self, ends: tuple[int, ...], ms: float | None) -> tuple[float | None, float | None, float | None]:
        """mIoU, latency and score."""
        validated = [record["miou_outputs"] for record in self.run.records("epoch") if record.get("miou_outputs")]
        miou = validated[-1].get(self.which, {}).get(combination_name(ends)) if validated else None
        if miou is None or ms is None:
            return miou, ms, None
        target = self.space.settings.target
        return miou, ms, miou * (ms / target.select_ms) ** target.select_exponent


def _choose(scores: Sequence[BranchScore], target_ms: float | None) -> BranchScore:
    """The best score, of those that reach the target if there is one; if none does, the nearest to it."""
    if target_ms is not None and not any(score.reached for score in scores):
        return min(scores, key=lambda score: abs((score.latency_ms or 0.0) - target_ms))
    allowed = [score for score in scores if score.reached is not False]
    if all(score.score is not None for score in allowed):
        return max(allowed, key=lambda score: score.score or 0.0)
    return allowed[-1]


def _logits(run: RunFolder, which: str) -> dict[str, Tensor]:
    logits = _of(run.load_weights("architecture"), which)
    if not logits:
        raise UserError(f"{run.path}: holds no architecture named {which}, expected student or teacher")
    return logits


def _of(logits: Mapping[str, Tensor], which: str) -> dict[str, Tensor]:
    """The tables of one architecture, by their own names."""
    prefix = f"{which}."
    return {name.removeprefix(prefix): table for name, table in logits.items() if name.startswith(prefix)}


def _text(branches: Sequence[int]) -> str:
    return ",".join(map(str, branches))


def describe_latency(derivation: Derivation) -> str:
    """Target, prediction and measurement in one line, as far as they are known."""
    parts = []
    if derivation.target_ms is not None:
        parts.append(f"target {derivation.target_ms:.3f} ms")
    if derivation.latency_ms is not None:
        off = ""
        if derivation.target_ms is not None:
            off = f" ({100 * (derivation.latency_ms / derivation.target_ms - 1):+.1f} %)"
            if abs(derivation.latency_ms / derivation.target_ms - 1) > TOLERANCE:
                off = off[:-1] + ", target not reached)"
        parts.append(f"predicted {derivation.latency_ms:.3f} ms{off}")
    if derivation.measured_ms is not None:
        parts.append(f"measured {derivation.measured_ms:.3f} ms")
    return "   ".join(parts)
