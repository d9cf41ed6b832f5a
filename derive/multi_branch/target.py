"""A derived network of a wanted latency: the likeliest one, changed where that costs the least likelihood."""

from __future__ import annotations

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

_CLOSE = 0.02  # what is aimed at first, so that the network is not derived at the very edge of the tolerance
_BISECTIONS = 14
_ROUNDS = 6
_NOT_FAR = 0.15

Price = Callable[[MultiBranchArchitecture], float]


@dataclass(frozen=True)
class Candidate:
    """A network with its latency in ms and by how much its log-probability is less than that of the likeliest."""

    selection: Selection
    architecture: MultiBranchArchitecture
    latency_ms: float
    lost: float

    def misses(self, target_ms: float) -> float:
        """The relative distance from the target."""
        return abs(self.latency_ms / target_ms - 1)


@dataclass(frozen=True)
class TargetedNetwork:
    """What was derived for a target, and what the argmax alone would have given.

    ``changes`` names every choice that is not the likeliest, each as ``what: likeliest -> chosen``.
    """

    chosen: Candidate
    likeliest: Candidate
    changes: tuple[str, ...]

    def reaches(self, target_ms: float) -> bool:
        """Whether it is within the tolerance."""
        return self.chosen.misses(target_ms) <= TOLERANCE


def network_price(plan: NetworkPlan, lookup: Lookup) -> Price:
    """The latency in ms of an architecture of ``plan``: the sum of its entries."""
    return lambda architecture: sum(map(lookup, architecture.signatures(plan.num_classes, plan.image_size)))


def latency_bounds(plan: NetworkPlan, lookup: Lookup) -> Mapping[tuple[int, ...], tuple[Candidate, Candidate]]:
    """The fastest and the slowest network that can be derived, for every combination of branches; ``lost`` is 0."""
    undecided = ArchitectureParameters(plan.grid, len(plan.operators), plan.ratios, end_ratio=plan.end_ratio, noise=0.0)
    likelihoods = Likelihoods(undecided.named_logits(), plan)
    prices, price = NetworkPrices(plan, lookup), network_price(plan, lookup)
    extremes = [LatencyLikelihoodDP(prices, None, loss_weight=0.0, latency_weight=sign) for sign in (1.0, -1.0)]

    def extreme(optimum: LatencyLikelihoodDP, branches: tuple[int, ...]) -> Candidate:
        selection = optimum.selection(branches)
        architecture = assemble(likelihoods, selection)
        return Candidate(selection, architecture, price(architecture), 0.0)

    return {
        branches: (extreme(extremes[0], branches), extreme(extremes[1], branches)) for branches in plan.combinations()
    }


class TargetedDecoder:
    """Decodes the logits of one architecture towards a latency; see :meth:`decode`."""

    def __init__(self, logits: Mapping[str, torch.Tensor], plan: NetworkPlan, lookup: Lookup) -> None:
        self._plan = plan
        self._likelihoods = Likelihoods(logits, plan)
        self._prices, self._price = NetworkPrices(plan, lookup), network_price(plan, lookup)

    def decode(
        self, branches: Sequence[int], target_ms: float, provenance: Mapping[str, object] = {}
    ) -> TargetedNetwork:
        """The likeliest network of these branches that is within 5 % of ``target_ms``, or the nearest one found.

        Where the argmax is within, it is left alone. Otherwise the exact optima of lost log-probability plus a multiple
        of the latency are followed from the argmax to the target; the one within 2 % (else 5 %) that has lost the
        least is taken. Where these jump over the target, single changes of the networks around it fill the gap. All
        is by choice and exact price; that nothing likelier is as near is proven for the optima only.
        """
        likeliest = self._candidate(self._likelihoods.likeliest(branches), provenance)
        found = [likeliest]
        if likeliest.misses(target_ms) > TOLERANCE:
            found += self._along_optima(branches, likeliest, target_ms, provenance)
            found += self._around(found, target_ms, provenance)
        chosen = _pick(found, target_ms)
        return TargetedNetwork(chosen, likeliest, self._changes(likeliest.selection, chosen.selection))

    def _candidate(self, selection: Selection, provenance: Mapping[str, object]) -> Candidate:
        architecture = assemble(self._likelihoods, selection, provenance)
        return Candidate(selection, architecture, self._price(architecture), self._likelihoods.loss(selection))

    def _along_optima(
        self, branches: Sequence[int], likeliest: Candidate, target_ms: float, provenance: Mapping[str, object]
    ) -> list[Candidate]:
        """Optima at rising weights of the latency, until the target is bracketed, then by bisection."""
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

    def _around(
        self, starts: Sequence[Candidate], target_ms: float, provenance: Mapping[str, object]
    ) -> list[Candidate]:
        """Candidates by single changes, again and again of the best so far, until one is close."""
        known, spread = list(starts), set[int]()
        for _ in range(_ROUNDS):
            beam = _beam([candidate for candidate in known if id(candidate) not in spread], target_ms)
            spread |= {id(candidate) for candidate in beam}
            around = (
                self._candidate(selection, provenance)
                for candidate in beam
                for selection in self._neighbours(candidate.selection)
            )
            known += [candidate for candidate in around if math.isfinite(candidate.lost)]
            if _pick(known, target_ms).misses(target_ms) <= _CLOSE:
                break
        return known[len(starts) :]

    def _neighbours(self, selection: Selection) -> Iterator[Selection]:
        """All selections that differ in one operator or one ratio of a branch's path."""
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
                changes.append(f"branch 1/{scale} goes coarser at layer: {old} -> {new}")
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
    """The nearest to the target from either side, and the likeliest of those that are not far."""
    ordered = sorted(candidates, key=lambda candidate: (candidate.misses(target_ms), candidate.lost))
    faster = [candidate for candidate in ordered if candidate.latency_ms <= target_ms]
    slower = [candidate for candidate in ordered if candidate.latency_ms > target_ms]
    likely = [candidate for candidate in ordered if candidate.misses(target_ms) <= _NOT_FAR]
    beam = [faster[:1], slower[:1], sorted(likely, key=lambda candidate: candidate.lost)[:2]]
    return list({id(candidate): candidate for part in beam for candidate in part}.values())


def _pick(candidates: Sequence[Candidate], target_ms: float) -> Candidate:
    """The candidate that lost the least within 2 %, else within 5 % of the target; else the nearest."""
    first = candidates[0]
    if first.misses(target_ms) <= TOLERANCE:
        return first
    for tolerance in (_CLOSE, TOLERANCE):
        within = [candidate for candidate in candidates if candidate.misses(target_ms) <= tolerance]
        if within:
            return min(within, key=lambda candidate: (candidate.lost, candidate.misses(target_ms)))
    return min(candidates, key=lambda candidate: candidate.misses(target_ms))
