"""Branch selection: every combination of branches is scored and the best one chosen (FasterSeg, Appendix B)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from derive.base import Derivation
from derive.multi_branch.architecture import MultiBranchArchitecture

SELECTION = "selection.json"
"""File name of the scores of all combinations, in the run folder of a search."""


@dataclass(frozen=True)
class BranchScore:
    """Score ACC * (LAT / T) ** w of a combination of branches, from the supernet's mIoU and the network's latency.

    ``argmax_ms``: latency of the most likely network. With a latency target, ``changes`` lists the choices that differ
    from the most likely ones, ``lost_log_probability`` is the loss in log-probability, and ``reached`` says whether
    the latency is within 5 % of the target; without a target ``reached`` is None. ``candidates``: how many networks
    were judged; with more than one, ``miou`` is that of the network with inherited weights, on held-out images.
    """

    branches: tuple[int, ...]
    miou: float | None
    latency_ms: float | None
    score: float | None
    argmax_ms: float | None = None
    lost_log_probability: float = 0.0
    changes: tuple[str, ...] = ()
    reached: bool | None = None
    candidates: int = 1

    def line(self) -> str:
        """The score as a line of text."""
        parts = [f"branches {branches_text(self.branches):<6}"]
        parts += [] if self.miou is None else [f"mIoU {100 * self.miou:5.1f} %"]
        parts += [] if self.latency_ms is None else [f"predicted {self.latency_ms:7.3f} ms"]
        parts += [] if self.score is None else [f"score {self.score:.4f}"]
        parts += [f"best of {self.candidates}"] if self.candidates > 1 else []
        parts += [self.adjustment()] if self.reached is not None else []
        return "  ".join(parts)

    def adjustment(self) -> str:
        """How the network differs from the likeliest one, to reach the latency target or as the best judged one."""
        if not self.changes:
            return "argmax unchanged"
        if self.candidates > 1:
            text = f"{len(self.changes)} choices differ from the likeliest network of {self.argmax_ms:.3f} ms"
            return text if self.reached else f"{text}, target not reached"
        text = f"argmax {self.argmax_ms:.3f} ms, {len(self.changes)} changes, "
        text += f"log-probability loss {self.lost_log_probability:.2f}"
        return text if self.reached else f"{text}, target not reached"


@dataclass(frozen=True, kw_only=True)
class MultiBranchDerivation(Derivation):
    """A derivation with the scores of all combinations of branches that were compared."""

    scores: tuple[BranchScore, ...] = ()

    @property
    def chosen(self) -> BranchScore | None:
        """The score of the combination that was derived."""
        architecture = cast("MultiBranchArchitecture", self.architecture)
        ends = tuple(branch.scale for branch in architecture.branches)
        return next((score for score in self.scores if score.branches == ends), None)

    def to_mapping(self) -> dict[str, Any]:
        """The content of ``dnas derive --json``."""
        return {
            **super().to_mapping(),
            "branches": self.architecture.summary(),
            "scores": [dataclasses.asdict(score) for score in self.scores],
        }

    def lines(self) -> Iterator[str]:
        """The scores, the cells of the selected combination, and its latency."""
        if len(self.scores) > 1:
            yield from (score.line() for score in self.scores)
        for branch in self.architecture.summary():
            yield f"branch 1/{branch['scale']}"
            for cell in branch["cells"]:
                down = f" -> 1/{2 * cell['scale']}" if cell["stride"] == 2 else ""
                yield (
                    f"  1/{cell['scale']:<3} {cell['operator']:<15} ratio {cell['ratio']:<3} "
                    f"{cell['out_channels']} channels{down}"
                )
        if self.chosen is not None and self.chosen.changes:
            why = "judged best" if self.chosen.candidates > 1 else "to reach the target"
            yield f"changes from the most likely network, {why} ({self.chosen.adjustment()}):"
            yield from (f"  {change}" for change in self.chosen.changes)
        if text := self.latency_line():
            yield text


def select(scores: Sequence[BranchScore], target_ms: float | None) -> BranchScore:
    """The best score among those that reach the target (if there is one); if none does, that nearest to the target."""
    if target_ms is not None and not any(score.reached for score in scores):
        return min(scores, key=lambda score: abs((score.latency_ms or 0.0) - target_ms))
    candidates = [score for score in scores if score.reached is not False]
    if all(score.score is not None for score in candidates):
        return max(candidates, key=lambda score: score.score or 0.0)
    return candidates[-1]


def branches_text(branches: Sequence[int]) -> str:
    """(16, 32) as text: ``16,32``."""
    return ",".join(map(str, branches))
