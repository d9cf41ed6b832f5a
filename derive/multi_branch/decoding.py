"""The network of one combination of branches: the likeliest, or the best of several candidates that are judged."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from derive.architecture import identity
from derive.base import provenance_of
from derive.judging import Judge
from derive.multi_branch.architecture import MultiBranchArchitecture
from derive.multi_branch.branches import BranchScore
from derive.multi_branch.decode import Likelihoods, assemble, decode
from derive.multi_branch.published_files import predicted_latency_ms
from derive.multi_branch.published_rule import decode_as_published
from derive.multi_branch.target import TargetedDecoder, TargetedNetwork, with_gumbel_noise
from dnas.config import Field, parse_config, record
from dnas.data.seeding import mix_seed
from dnas.latency.table import LatencyTable
from dnas.runs import RunFolder
from search_spaces.fasterseg import FasterSegSpace, NetworkPlan, combination_name

Found = tuple[MultiBranchArchitecture, BranchScore]
_DRAWS_PER_CANDIDATE = 4


@record
class _Validated:
    """The mIoU of every output (a combination of branches), by architecture."""

    outputs: dict[str, dict[str, Annotated[float, Field(ge=0, le=1)] | None]]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What the derivations of all combinations of branches have in common.

    candidates: networks per combination; if there is more than one, ``judge`` scores them. They are the likeliest
    network and samples: networks that are the likeliest after Gumbel noise on the logits.
    """

    run: RunFolder
    space: FasterSegSpace
    which: str
    rule: str
    logits: Mapping[str, Tensor]
    table: LatencyTable | None
    target_ms: float | None
    candidates: int
    judge: Callable[[], Judge]

    def derive(self, ends: tuple[int, ...]) -> Found:
        """The best candidate of a combination of branches with its score."""
        if self.candidates == 1:
            architecture, score = self._network(ends)
            return architecture, self._scored(score, self._supernet_miou(ends))
        found = self._candidates(ends)
        notes = [self._note(score) for _, score in found]
        description = f"judging candidates {combination_name(ends)}"
        mious = self.judge().miou([architecture for architecture, _ in found], description, notes)
        scored = [
            (
                one.with_provenance(candidates=len(found), supernet_miou=round(miou, 6)),
                dataclasses.replace(self._scored(score, miou), candidates=len(found)),
            )
            for (one, score), miou in zip(found, mious, strict=True)
        ]
        return max(scored, key=lambda pair: self._worth(pair[1]))

    def _worth(self, score: BranchScore) -> float:
        """By what candidates are compared: near the target the mIoU; without one the latency is weighed against it."""
        weighed = self.target_ms is None and self.table is not None
        return (score.score if weighed else score.miou) or 0.0

    def _candidates(self, ends: tuple[int, ...]) -> list[Found]:
        """The likeliest network and distinct samples; with a target only those that reach it, if any does."""
        target = round(1e6 * (self.target_ms or 0.0))
        generator = torch.Generator().manual_seed(mix_seed("candidates", self.run.seed, *ends, target))
        found: dict[str, Found] = {}
        for number in range(_DRAWS_PER_CANDIDATE * self.candidates):
            one = self._network(ends, generator if number else None)
            found.setdefault(identity(one[0]), one)
            if len(found) == self.candidates:
                break
        reached = [one for one in found.values() if one[1].reached]
        return reached or list(found.values())

    def _network(self, ends: tuple[int, ...], generator: torch.Generator | None = None) -> Found:
        """The likeliest network or, with a generator, a sample."""
        if self._decoder is not None and self.target_ms is not None:
            if generator is None:
                found = self._decoder.decode(ends, self.target_ms, self._provenance)
            else:
                found = self._decoder.sample(ends, self.target_ms, generator, self._provenance)
            return self._targeted(ends, found, self.target_ms)
        if self.rule != "paper":
            architecture = decode_as_published(self.logits, self._plan, ends, self._provenance)
        elif generator is None:
            architecture = decode(self.logits, self._plan, ends, self._provenance)
        else:
            selection = Likelihoods(with_gumbel_noise(self.logits, generator), self._plan).likeliest(ends)
            architecture = assemble(Likelihoods(self.logits, self._plan), selection, self._provenance)
        architecture = self._complete(architecture)
        ms = None
        if self.table is not None:
            ms = predicted_latency_ms(architecture, self.table.lookup, self.rule, self.space.channels)
        return architecture, BranchScore(ends, None, ms, None, argmax_ms=ms)

    def _targeted(self, ends: tuple[int, ...], found: TargetedNetwork, target_ms: float) -> Found:
        chosen = found.chosen
        score = BranchScore(
            ends,
            None,
            chosen.latency_ms,
            None,
            argmax_ms=found.likeliest.latency_ms,
            lost_log_probability=chosen.lost,
            changes=found.changes,
            reached=found.reaches(target_ms),
        )
        architecture = chosen.architecture.with_provenance(
            target_ms=target_ms,
            predicted_ms=round(chosen.latency_ms, 6),
            argmax_ms=round(found.likeliest.latency_ms, 6),
            lost_log_probability=round(chosen.lost, 6),
        )
        return self._complete(architecture), score

    @property
    def _plan(self) -> NetworkPlan:
        return self.space.plan(self.which)

    @functools.cached_property
    def _provenance(self) -> Mapping[str, object]:
        return provenance_of(self.run, self.which, self.rule)

    @functools.cached_property
    def _decoder(self) -> TargetedDecoder | None:
        """The decoder for the target, if there is one."""
        if self.target_ms is None or self.table is None:
            return None
        return TargetedDecoder(self.logits, self._plan, self.table.lookup)

    def _complete(self, architecture: MultiBranchArchitecture) -> MultiBranchArchitecture:
        size = self.space.input_size
        return dataclasses.replace(architecture, num_classes=self.space.num_classes, input_size=size)

    def _note(self, score: BranchScore) -> dict[str, Any]:
        """What a judged candidate's record says besides its mIoU."""
        return {
            "kind": "candidate",
            "branches": list(score.branches),
            "latency_ms": score.latency_ms,
            "target_ms": self.target_ms,
            "lost_log_probability": score.lost_log_probability,
        }

    def _supernet_miou(self, ends: tuple[int, ...]) -> float | None:
        """The supernet's mIoU for a combination, in the last validation of the search."""
        validated = [record["miou_outputs"] for record in self.run.records("epoch") if record.get("miou_outputs")]
        if not validated:
            return None
        scores = parse_config(_Validated, {"outputs": validated[-1]}, f"{self.run.path / 'log.jsonl'}: miou_outputs")
        return scores.outputs.get(self.which, {}).get(combination_name(ends))

    def _scored(self, score: BranchScore, miou: float | None) -> BranchScore:
        """``score`` with a mIoU and ACC * (LAT / T) ** w."""
        ms = score.latency_ms
        if miou is None or ms is None:
            return dataclasses.replace(score, miou=miou)
        selection = self.space.settings.branch_selection
        weight = (ms / selection.reference_ms) ** selection.exponent
        return dataclasses.replace(score, miou=miou, score=miou * weight)
