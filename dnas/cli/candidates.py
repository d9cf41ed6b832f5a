"""Whole networks of a space, each with the latency that a table predicts: what a check measures."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from derive import AnyArchitecture, Architecture, DilatedArchitecture, sample_architectures
from derive.dilated import BaseNetwork
from dnas.data.seeding import mix_seed
from dnas.errors import UserError
from dnas.latency import LatencyTable
from dnas.latency.check import spread_evenly
from search_spaces import FasterSegSpace, RegSegSpace, SearchSpace

_DRAWN_FOR_EACH = 10


@dataclass(frozen=True)
class Candidate:
    """A network: what tells it from others, the latency in ms that the table predicts, and how to make it."""

    identity: str
    predicted_ms: float
    build: Callable[[], nn.Module]


def sampled_networks(
    table: LatencyTable, space: SearchSpace, count: int, seed: int, *, but: Collection[Candidate] = ()
) -> dict[str, Candidate]:
    """``count`` networks of ``space`` by name, evenly spread over the predicted latencies of ten times as many.

    All are different, and none is one of ``but``. A small space may hold fewer.
    """
    priced = _pricer(table, space)
    drawn = [priced(architecture) for architecture in _drawn(space, _DRAWN_FOR_EACH * count, seed)]
    known = {candidate.identity for candidate in but}
    candidates = list({found.identity: found for found in drawn if found.identity not in known}.values())
    chosen = spread_evenly([candidate.predicted_ms for candidate in candidates], count)
    return {f"sampled {number + 1}": candidates[index] for number, index in enumerate(chosen)}


def derived_networks(
    table: LatencyTable, space: SearchSpace, architectures: Mapping[str, AnyArchitecture]
) -> dict[str, Candidate]:
    """The candidates of ``architectures``; one that is not of ``space`` raises :class:`UserError` naming it."""
    priced = _pricer(table, space)

    def named(name: str, architecture: AnyArchitecture) -> Candidate:
        try:
            return priced(architecture)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    return {name: named(name, architecture) for name, architecture in architectures.items()}


def _drawn(space: SearchSpace, count: int, seed: int) -> list[AnyArchitecture]:
    if isinstance(space, FasterSegSpace):
        return [*sample_architectures(space.plan(), space.end_ratios["student"], count, seed)]
    if isinstance(space, RegSegSpace):
        return [*_random_rates(space, count, seed)]
    raise UserError(f"{space.name}: networks of this space cannot be sampled")


def _random_rates(space: RegSegSpace, count: int, seed: int) -> list[DilatedArchitecture]:
    """Networks whose rates lie, each network with a limit of its own, anywhere up to the space's largest rate."""
    generator = random.Random(mix_seed("check", seed))
    choices = space.rate_choices()
    found = []
    for index in range(count):
        share = (index + 0.5) / count
        limits = {name: 1 + round(share * (largest - 1)) for name, largest in choices.items()}
        rates = {name: generator.randint(1, limit) for name, limit in limits.items()}
        found.append(DilatedArchitecture(network=_base(space), rates=rates))
    return found


def _base(space: RegSegSpace) -> BaseNetwork:
    return BaseNetwork(name=space.settings.network.name, options=space.settings.network.options)


def _pricer(table: LatencyTable, space: SearchSpace) -> Callable[[AnyArchitecture], Candidate]:
    size, classes = space.input_size, space.num_classes

    def cells(architecture: AnyArchitecture) -> Candidate:
        if not isinstance(architecture, Architecture):
            raise UserError(f"is no network of branches and cells, as those of {space.name} are")
        predicted = sum(map(table.lookup, architecture.signatures(classes, size)))
        return Candidate(json.dumps(architecture.summary()), predicted, partial(architecture.build, classes))

    if isinstance(space, FasterSegSpace):
        return cells
    if not isinstance(space, RegSegSpace):
        raise UserError(f"{space.name}: networks of this space cannot be priced")
    latency, choices, base = space.latency(table), space.rate_choices(), _base(space)

    def rates(architecture: AnyArchitecture) -> Candidate:
        same = isinstance(architecture, DilatedArchitecture) and architecture.network == base
        if not isinstance(architecture, DilatedArchitecture) or not same or architecture.rates.keys() != choices.keys():
            raise UserError(f"is no network of {space.name}: that has {base.name} with rates of {', '.join(choices)}")
        beyond = [name for name, rate in architecture.rates.items() if rate > choices[name]]
        if beyond:
            raise UserError(f"the rates of {', '.join(beyond)} exceed {space.name}'s rates.upper")
        predicted = latency({name: torch.tensor(float(rate)) for name, rate in architecture.rates.items()})
        identity = json.dumps(architecture.rates, sort_keys=True)
        return Candidate(identity, float(predicted), partial(architecture.build, classes))

    return rates
