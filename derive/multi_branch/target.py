"""Derivation for a latency target: the most likely network that meets the target."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from derive.base import TOLERANCE
from derive.multi_branch.architecture import MultiBranchArchitecture
from derive.multi_branch.decode import Likelihoods, assemble
from derive.multi_branch.latency_dp import LatencyLikelihoodDP
from derive.multi_branch.prices import Lookup, NetworkPrices
from search_spaces.fasterseg import ArchitectureParameters, NetworkPlan
from search_spaces.fasterseg.selection import Selection, levels_of

_CLOSE = 0.02  # tried first, so that the network is not at the edge of the tolerance
_BISECTIONS = 14
_ROUNDS = 6
_BEAM_TOLERANCE = 0.15

Price = Callable[[MultiBranchArchitecture], float]


@dataclass(frozen=True)
class Candidate:
    """A network with its latency in ms and its loss in log-probability relative to the most likely network."""

    selection: Selection
    architecture: MultiBranchArchitecture
    latency_ms: float
    lost: float

    def misses(self, target_ms: float) -> float:
        """The relative distance from the target."""
        return abs(self.latency_ms / target_ms - 1)


@dataclass(frozen=True)
class TargetedNetwork:
    """The network derived for a target, and the most likely network (the argmax).

    ``changes`` lists the choices in which they differ, each as ``choice: likeliest -> chosen``.
    """

    chosen: Candidate
    likeliest: Candidate
    changes: tuple[str, ...]

    def reaches(self, target_ms: float) -> bool:
        """Whether the chosen network is within the tolerance."""
        return self.chosen.misses(target_ms) <= TOLERANCE


def with_gumbel_noise(logits: Mapping[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Logits in float64 with independent Gumbel noise: their argmax is a sample of their softmax."""
    tiny, noisy = torch.finfo(torch.float64).tiny, {}
    for name in sorted(logits):  # the order in which the noise is drawn
        uniform = torch.rand(logits[name].shape, generator=generator, dtype=torch.float64)
        noisy[name] = logits[name].double().cpu() - (-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()
    return noisy


def network_price(plan: NetworkPlan, lookup: Lookup) -> Price:
    """A function from an architecture of ``plan`` to its latency in ms: the sum of its operators' entries."""
    task = (plan.num_classes, plan.image_size, plan.channels)
    return lambda architecture: sum(map(lookup, architecture.signatures(*task)))


def latency_bounds(plan: NetworkPlan, lookup: Lookup) -> Mapping[tuple[int, ...], tuple[Candidate, Candidate]]:
    """The fastest and the slowest network that can be derived, by combination of branches; their ``lost`` is 0."""
    uniform = ArchitectureParameters(plan.grid, len(plan.operators), plan.ratios, end_ratio=plan.end_ratio, noise=0.0)
    likelihoods = Likelihoods(uniform.named_logits(), plan)
    prices, price = NetworkPrices(plan, lookup), network_price(plan, lookup)
    programs = [LatencyLikelihoodDP(prices, None, loss_weight=0.0, latency_weight=sign) for sign in (1.0, -1.0)]

    def optimum(program: LatencyLikelihoodDP, branches: tuple[int, ...]) -> Candidate:
        selection = program.selection(branches)
        architecture = assemble(likelihoods, selection)
        return Candidate(selection, architecture, price(architecture), 0.0)

    return {
        branches: (optimum(programs[0], branches), optimum(programs[1], branches)) for branches in plan.combinations()
    }


class TargetedDecoder:
    """Decodes the logits of one architecture for latency targets; see :meth:`decode`."""

    def __init__(self, logits: Mapping[str, torch.Tensor], plan: NetworkPlan, lookup: Lookup) -> None:
        self._plan, self._logits = plan, logits
        self._likelihoods = Likelihoods(logits, plan)
        self._prices, self._price = NetworkPrices(plan, lookup), network_price(plan, lookup)

    def decode(
        self, branches: Sequence[int], target_ms: float, provenance: Mapping[str, object] = {}
    ) -> TargetedNetwork:
        """The most likely network found of these branches within 5 % of ``target_ms``; if none is found, the nearest.

        If the argmax is within 5 %, it is returned unchanged. Otherwise the latency is added to the loss in
        log-probability with increasing weight, and the exact optimum computed for each; single changes of the networks
        near the target fill gaps between optima. Of the networks within 2 % (else 5 %), the one with the least loss is
        returned. Latencies are exact; optimality is guaranteed only for the optima, not for the single changes.
        """
        likeliest = self._candidate(self._likelihoods.likeliest(branches), provenance)
        found = [likeliest]
        if likeliest.misses(target_ms) > TOLERANCE:
            found += self._along_optima(branches, likeliest, target_ms, provenance)
            found += self._beam_search(found, target_ms, provenance)
        chosen = _pick(found, target_ms)
        return TargetedNetwork(chosen, likeliest, self._changes(likeliest.selection, chosen.selection))

    def sample(
        self,
        branches: Sequence[int],
        target_ms: float,
        generator: torch.Generator,
        provenance: Mapping[str, object] = {},
    ) -> TargetedNetwork:
        """A random network for the target: what :meth:`decode` finds with Gumbel noise added to all logits.

        Without a target such a network would be a sample of the likelihood (perturb-and-MAP; Papandreou and Yuille
        2011). Its losses and margins are those of the logits without noise.
        """
        other = copy.copy(self)
        other._likelihoods = Likelihoods(with_gumbel_noise(self._logits, generator), self._plan)
        selection = other.decode(branches, target_ms).chosen.selection
        chosen, likeliest = (
            self._candidate(one, provenance) for one in (selection, self._likelihoods.likeliest(branches))
        )
        return TargetedNetwork(chosen, likeliest, self._changes(likeliest.selection, chosen.selection))

    def _candidate(self, selection: Selection, provenance: Mapping[str, object]) -> Candidate:
        architecture = assemble(self._likelihoods, selection, provenance)
        return Candidate(selection, architecture, self._price(architecture), self._likelihoods.loss(selection))

    def _along_optima(
        self, branches: Sequence[int], likeliest: Candidate, target_ms: float, provenance: Mapping[str, object]
    ) -> list[Candidate]:
        """Optima at increasing weights of the latency until the target is bracketed, then by bisection."""
        sign = 1.0 if likeliest.latency_ms > target_ms else -1.0

        def optimum(weight: float) -> Candidate:
            best = LatencyLikelihoodDP(self._prices, self._likelihoods, loss_weight=1.0, latency_weight=sign * weight)
            return self._candidate(best.selection(branches), provenance)

        def is_beyond(candidate: Candidate) -> bool:
            return sign * (candidate.latency_ms - target_ms) <= 0

        low, high = 1e-4 / target_ms, 1e-3 / target_ms
        found = [optimum(high)]
        while not is_beyond(found[-1]) and high < 1e7 / target_ms:
            low, high = high, 10 * high
            found.append(optimum(high))
        if not is_beyond(found[-1]):
            return found
        for _ in range(_BISECTIONS):
            middle = math.sqrt(low * high)
            found.append(optimum(middle))
            low, high = (low, middle) if is_beyond(found[-1]) else (middle, high)
        return found

    def _beam_search(
        self, starts: Sequence[Candidate], target_ms: float, provenance: Mapping[str, object]
    ) -> list[Candidate]:
        """Beam search: candidates by single changes of the best ones so far, until one is close to the target."""
        known, expanded = list(starts), set[int]()
        for _ in range(_ROUNDS):
            beam = _beam([candidate for candidate in known if id(candidate) not in expanded], target_ms)
            expanded |= {id(candidate) for candidate in beam}
            neighbours = (
                self._candidate(selection, provenance)
                for candidate in beam
                for selection in self._neighbours(candidate.selection)
            )
            known += [candidate for candidate in neighbours if math.isfinite(candidate.lost)]
            if _pick(known, target_ms).misses(target_ms) <= _CLOSE:
                break
        return known[len(starts) :]

    def _neighbours(self, selection: Selection) -> Iterator[Selection]:
        """All selections that differ in one operator or one ratio on a branch's path."""
        used = {
            (level, layer)
            for entered in selection.entered.values()
            for layer, level in enumerate(levels_of(entered, self._plan.grid))
        }
        for place in sorted(used):
            for operator in self._plan.operators:
                if operator != selection.operators[place]:
                    yield replace(selection, operators={**selection.operators, place: operator})
            for ratio in self._plan.ratios if place[1] else ():
                if ratio != selection.ratios[place]:
                    yield replace(selection, ratios={**selection.ratios, place: ratio})

    def _changes(self, before: Selection, after: Selection) -> tuple[str, ...]:
        grid, changes = self._plan.grid, []
        cells: set[tuple[int, int]] = set()
        for scale, entered in after.entered.items():
            cells |= {(level, layer) for layer, level in enumerate(levels_of(entered, grid))}
            if entered != before.entered[scale]:
                old, new = (",".join(map(str, layers)) for layers in (before.entered[scale], entered))
                changes.append(f"downsampling layers of branch 1/{scale}: {old} -> {new}")
        for level, layer in sorted(cells):
            where = f"1/{grid.scales[level]} layer {layer}"
            tables: tuple[tuple[str, Mapping[tuple[int, int], object], Mapping[tuple[int, int], object]], ...] = (
                ("operator", before.operators, after.operators),
                ("ratio", before.ratios, after.ratios),
            )
            for kind, old_table, new_table in tables:
                if (level, layer) in new_table and old_table[level, layer] != new_table[level, layer]:
                    changes.append(f"{kind} {where}: {old_table[level, layer]} -> {new_table[level, layer]}")
        return tuple(changes)


def _beam(candidates: Sequence[Candidate], target_ms: float) -> list[Candidate]:
    """The nearest candidate on each side of the target, and the two most likely ones within 15 %."""
    ordered = sorted(candidates, key=lambda candidate: (candidate.misses(target_ms), candidate.lost))
    faster = [candidate for candidate in ordered if candidate.latency_ms <= target_ms]
    slower = [candidate for candidate in ordered if candidate.latency_ms > target_ms]
    likely = [candidate for candidate in ordered if candidate.misses(target_ms) <= _BEAM_TOLERANCE]
    beam = [faster[:1], slower[:1], sorted(likely, key=lambda candidate: candidate.lost)[:2]]
    return list({id(candidate): candidate for part in beam for candidate in part}.values())


def _pick(candidates: Sequence[Candidate], target_ms: float) -> Candidate:
    """The candidate with the least loss within 2 %, else within 5 % of the target; else the nearest.

    The first candidate, the argmax, is preferred if it is within 5 %.
    """
    first = candidates[0]
    if first.misses(target_ms) <= TOLERANCE:
        return first
    for tolerance in (_CLOSE, TOLERANCE):
        within = [candidate for candidate in candidates if candidate.misses(target_ms) <= tolerance]
        if within:
            return min(within, key=lambda candidate: (candidate.lost, candidate.misses(target_ms)))
    return min(candidates, key=lambda candidate: candidate.misses(target_ms))
