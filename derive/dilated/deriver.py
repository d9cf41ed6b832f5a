"""Derivation of a network with integer dilation rates from a search of fractional rates."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from derive.architecture import Architecture
from derive.base import TOLERANCE, Derivation, DeriveOptions, Deriver, Range, logits_of, provenance_of
from derive.dilated.architecture import BaseNetwork, DilatedArchitecture
from derive.dilated.rounding import by_block, round_rates, round_to_target
from derive.judging import searched_problem
from dnas.data.seeding import mix_seed
from dnas.errors import UserError
from dnas.latency.table import LatencyTable
from dnas.ops import floor_and_ceil, fractional_layers, round_dilations
from dnas.runs import RunFolder
from dnas.search import SearchProblem
from search_spaces.regseg import DilationLatency, RateSearch, RegSegSpace
from search_spaces.regseg.problem import ARCHITECTURE

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from dnas.report import Section


@dataclasses.dataclass(frozen=True, kw_only=True)
class DilatedDerivation(Derivation):
    """Integer rates derived from searched ones, and the network's field of view in pixels."""

    architecture: DilatedArchitecture
    field_of_view: int

    def to_mapping(self) -> dict[str, Any]:
        """The content of ``dnas derive --json``."""
        return {
            **super().to_mapping(),
            "rates": self.architecture.rates,
            "searched_rates": self.architecture.searched_rates,
            "field_of_view": self.field_of_view,
        }

    def lines(self) -> Iterator[str]:
        """The rates of every block."""
        searched, rounded = by_block(self.architecture.searched_rates), by_block(self.architecture.rates)
        for block, rates in rounded.items():
            before = ", ".join(f"{rate:.2f}" for rate in searched[block])
            yield f"  {block:<32} ({before}) -> ({', '.join(f'{rate:g}' for rate in rates)})"
        yield f"field of view {self.field_of_view} pixels"
        if text := self.latency_line():
            yield text


class DilatedDeriver(Deriver[RegSegSpace]):
    """Rounds searched dilation rates (RegSeg v3, section 3.4)."""

    architectures = (ARCHITECTURE,)

    def draw(self, count: int, seed: int) -> Sequence[DilatedArchitecture]:
        """Networks with uniformly sampled rates; the upper limit rises from network to network to the largest rate."""
        generator = random.Random(mix_seed("check", seed))
        choices = self.space.rate_choices()
        found = []
        for index in range(count):
            share = (index + 0.5) / count
            limits = {name: 1 + round(share * (largest - 1)) for name, largest in choices.items()}
            found.append(self._architecture({name: generator.randint(1, limit) for name, limit in limits.items()}))
        return found

    def predict_ms(self, architecture: Architecture, table: LatencyTable) -> float:
        """The measured latency of the base network plus the change due to the rates."""
        choices, base = self.space.rate_choices(), self._base()
        same = isinstance(architecture, DilatedArchitecture) and architecture.network == base
        if not isinstance(architecture, DilatedArchitecture) or not same or architecture.rates.keys() != choices.keys():
            raise UserError(
                f"not a network of {self.space.name}, expected {base.name} with dilation rates of {', '.join(choices)}"
            )
        if exceeding := [name for name, rate in architecture.rates.items() if rate > choices[name]]:
            raise UserError(f"the rates of {', '.join(exceeding)} exceed {self.space.name}'s rates.upper")
        return _latency(self.space.latency(table), architecture.rates)

    def latency_bounds(self, table: LatencyTable) -> Mapping[str, Range]:
        """The latencies with every layer at its fastest and at its slowest rate."""
        latency = self.space.latency(table)
        prices = latency.prices.values()
        fastest = sum(float(values.min()) for values in prices) + latency.rest_ms
        slowest = sum(float(values.max()) for values in prices) + latency.rest_ms
        return {"logits": (fastest, slowest)}

    def derived_ms(self, table: LatencyTable) -> Callable[[Mapping[str, Tensor]], Mapping[str, float]]:
        """A function from the logits to the latency of the rounded rates."""
        latency = self.space.latency(table)

        def derived(logits: Mapping[str, Tensor]) -> dict[str, float]:
            rates = {name: float(rate) for name, rate in logits_of(logits, ARCHITECTURE).items()}
            rounded = floor_and_ceil(rates)
            clipped = {name: min(rate, len(latency.prices[name])) for name, rate in rounded.items()}
            return {"logits": _latency(latency, clipped)}

        return derived

    def derive(self, run: RunFolder, options: DeriveOptions) -> DilatedDerivation:
        """The network with integer rates, rounded by RegSeg's rule within the space's bounds.

        If that misses a latency target by more than 5 %, the nearest rates that meet the target are used instead.
        """
        if options.branches is not None:
            raise UserError(f"{run.path}: a search of dilation rates has no branches; leave --branches out")
        if options.candidates is not None:
            raise UserError(f"{run.path}: a search of dilation rates holds no images out; leave --candidates out")
        # A search without a teacher has one network; --which student refers to it, too.
        which, rule = self.check_options(
            dataclasses.replace(options, which=ARCHITECTURE) if options.which == "student" else options, run.path
        )
        table = self.table_of(run, options)
        target = options.target_ms or self.space.settings.latency_target_ms if options.use_target else None
        if options.target_ms is not None and table is None:
            raise UserError(f"{run.path}: a latency target needs a latency table (--table)")
        latency = None if table is None else self.space.latency(table)
        problem = self.space.bounded(self.space.network(), latency)
        searched = self.searched(run, problem)
        rates = round_rates(problem, searched)
        if target is not None and latency is not None and abs(_latency(latency, rates) / target - 1) > TOLERANCE:
            rates = self._meet_target(target, latency, problem, searched, rates)
        architecture = dataclasses.replace(
            self._architecture(rates),
            searched_rates={name: round(rate, 4) for name, rate in searched.items()},
            provenance=provenance_of(run, which, rule),
        )
        return DilatedDerivation(
            architecture=architecture,
            rule=rule,
            latency_ms=None if latency is None else _latency(latency, rates),
            target_ms=None if latency is None else target,
            field_of_view=architecture.field_of_view(),
        )

    def _meet_target(
        self,
        target_ms: float,
        latency: DilationLatency,
        problem: RateSearch,
        searched: Mapping[str, float],
        rounded: Mapping[str, int],
    ) -> dict[str, int]:
        """The nearest rates within 2 % of the target, else within 5 %; ``rounded`` if there are none."""
        for tolerance in (0.4 * TOLERANCE, TOLERANCE):
            bounds = (target_ms * (1 - tolerance) - latency.rest_ms, target_ms * (1 + tolerance) - latency.rest_ms)
            prices = {name: values.tolist() for name, values in latency.prices.items()}
            while (found := round_to_target(searched, rounded, prices, bounds)) is not None:
                # A layer's bound depends on the rates of earlier layers: exclude rates above it and solve again.
                limits = problem.limits(found)
                exceeding = [name for name, rate in found.items() if rate > max(rounded[name], math.ceil(limits[name]))]
                if not exceeding:
                    return found
                for name in exceeding:
                    prices[name] = prices[name][: found[name] - 1]
        return dict(rounded)

    def inherit(self, problem: SearchProblem, architecture: Architecture) -> nn.Module:
        """The searched network with the architecture's rates."""
        if not isinstance(architecture, DilatedArchitecture):
            raise UserError(f"not a network of {self.space.name}, expected one with dilation rates")
        network = copy.deepcopy(problem.weights)
        for layer in fractional_layers(network).values():
            layer.upper = math.inf  # the paper's rounding may exceed a bound
        return round_dilations(network, lambda _: architecture.rates)

    def searched_network(self, run: RunFolder, *, rounded: bool = False) -> nn.Module:
        """The searched network with its fractional rates, or with the rounded ones (RegSeg v3, Table 5)."""
        problem = searched_problem(run, self, None)
        assert isinstance(problem, RateSearch)
        problem.assign(self.searched(run, problem))
        if rounded:
            return self.inherit(problem, self.derive(run, DeriveOptions()).architecture)
        return problem.weights

    def progress_lines(self, run: RunFolder) -> list[str]:
        """The scores of the predictions that the search saved."""
        from derive.dilated.snapshots import snapshots

        return [f"step {snapshot.step:>3}: {snapshot.note()}" for snapshot in snapshots(run, self.space)]

    def search_sections(self, run: RunFolder) -> list[Section]:
        """The rates over the epochs, and their rounding."""
        from derive.dilated.report import rate_sections

        return rate_sections(run, self)

    def search_drawings(self, run: RunFolder) -> dict[str, Drawing]:
        """The figures of the report."""
        from derive.dilated.report import rate_drawings

        return rate_drawings(run, self)

    def searched(self, run: RunFolder, problem: RateSearch) -> dict[str, float]:
        """The rates after the last finished epoch, in the order of the network's layers (the file has no order)."""
        tensors = logits_of(run.load_weights("architecture"), ARCHITECTURE)
        if tensors.keys() != problem.layers.keys() or any(rate.numel() != 1 for rate in tensors.values()):
            raise UserError(f"{run.path}: the layers of the saved rates are not those of its configuration")
        found = {name: float(rate) for name, rate in tensors.items()}
        if not all(1 <= rate <= 4096 for rate in found.values()):
            raise UserError(f"{run.path}: saved rates outside 1 to 4096; architecture.safetensors is damaged")
        return {name: found[name] for name in problem.layers}

    def _architecture(self, rates: Mapping[str, int]) -> DilatedArchitecture:
        return DilatedArchitecture(
            network=self._base(),
            rates=dict(rates),
            num_classes=self.space.num_classes,
            input_size=self.space.input_size,
        )

    def _base(self) -> BaseNetwork:
        network = self.space.settings.network
        return BaseNetwork(name=network.name, options=network.options)


def _latency(latency: DilationLatency, rates: Mapping[str, int]) -> float:
    return float(latency({name: torch.tensor(float(rate)) for name, rate in rates.items()}))
