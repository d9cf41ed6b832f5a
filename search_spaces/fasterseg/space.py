"""FasterSeg's search space (section 3): operators, downsampling positions and expansion ratios of branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from typing_extensions import Self

from dnas.config import parse_config
from dnas.data.seeding import mix_seed
from dnas.errors import UserError
from dnas.latency.spec import InventoryItem, OperatorSpec
from dnas.latency.table import LatencyTable
from dnas.runs import seed_everything
from dnas.search import EstimatorSearchConfig
from search_spaces.base import SearchSpace
from search_spaces.fasterseg.config import (
    FasterSegConfig,
    FasterSegOneShotConfig,
    FasterSegPreset,
    FasterSegSearchConfig,
)
from search_spaces.fasterseg.expected_latency import DecoupledWeights, ExpectedLatency
from search_spaces.fasterseg.one_shot import NetworkSampling
from search_spaces.fasterseg.parameters import ArchitectureParameters
from search_spaces.fasterseg.plan import NetworkPlan
from search_spaces.fasterseg.problem import CoSearch
from search_spaces.fasterseg.signatures import (
    cell_signature,
    fuse_signature,
    head_signature,
    inventory_item,
    stem_signature,
)
from search_spaces.fasterseg.supernet import MultiResolutionSupernet


class FasterSegSpace(SearchSpace[FasterSegPreset]):
    """The space of a :class:`FasterSegConfig`."""

    settings_type = FasterSegPreset
    steered = "student"

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Self:
        """The preset that ``search.method`` asks for."""
        search = values.get("search")
        method = search.get("method") if isinstance(search, Mapping) else None
        settings: type[FasterSegPreset] = FasterSegOneShotConfig if method == "estimator" else FasterSegConfig
        return cls(parse_config(settings, values, source), source)

    @property
    def search(self) -> FasterSegSearchConfig | EstimatorSearchConfig:
        """Settings of the search."""
        settings = self.settings
        assert isinstance(settings, FasterSegConfig | FasterSegOneShotConfig)
        return settings.search

    @property
    def end_ratios(self) -> dict[str, int]:
        """Expansion ratio of stem and head, by architecture."""
        network = self.settings.network
        return {"student": network.student_ratio, "teacher": network.teacher_ratio}

    def plan(self, architecture: str = "student") -> NetworkPlan:
        """The fixed properties of the networks of one architecture."""
        network, task = self.settings.network, self.settings.task
        return NetworkPlan(
            network.grid,
            network.operators,
            network.ratios,
            network.branches,
            task.num_classes,
            task.input_size,
            self.end_ratios[architecture],
            task.channels,
        )

    def inventory(self) -> list[InventoryItem]:
        """All operators that networks of this space can contain, each signature once.

        Skips of stride 1 are not measured, because derived networks do not contain them.
        """
        return [inventory_item(spec) for spec in dict.fromkeys(self._signatures())]

    def _signatures(self) -> Iterator[OperatorSpec]:
        network, size = self.settings.network, self.input_size
        ends = sorted(set(self.end_ratios.values()))
        for end in ends:
            yield stem_signature(end, size, self.channels)
            yield head_signature(end, network.branches, self.num_classes, size)
            for scale in network.scales[:-1]:
                for ratio in sorted({*network.ratios, *(ends if scale == 8 else ())}):
                    yield fuse_signature(ratio * scale, scale, end, size)
        for scale in network.scales:
            strides = (1, 2) if scale != network.scales[-1] else (1,)
            for stride in strides:
                ins = sorted({*network.ratios, *(ends if scale == 8 else ())})
                for operator in network.operators:
                    if operator == "skip" and stride == 1:
                        continue
                    # Skips before the head narrow the operator before them, of either stride, to the head's width.
                    outs = sorted({*network.ratios, *(ends if operator != "skip" else ())})
                    for a in ins:
                        for b in outs:
                            yield cell_signature(operator, a * scale, b * scale * stride, scale, stride, size)

    def supernet(self) -> MultiResolutionSupernet:
        """The supernet, initialised from torch's global generator."""
        network = self.settings.network
        return MultiResolutionSupernet(
            network.grid,
            network.operators,
            network.ratios,
            list(self.end_ratios.values()),
            network.branches,
            self.num_classes,
        )

    def architectures(self, seed: int) -> dict[str, ArchitectureParameters]:
        """Newly initialised parameters of the teacher, which does not search ratios, and of the student."""
        network = self.settings.network
        return {
            name: ArchitectureParameters(
                network.grid,
                len(network.operators),
                network.ratios,
                end_ratio=self.end_ratios[name],
                search_ratios=name == "student",
                generator=torch.Generator().manual_seed(mix_seed("logits", name, seed)),
            )
            for name in ("teacher", "student")
        }

    def latency(self, table: LatencyTable, architecture: str = "student") -> ExpectedLatency:
        """The expected latency of one architecture's samples, from the entries of ``table``."""
        return ExpectedLatency(self.plan(architecture), table.lookup)

    def describe_prices(self, table: LatencyTable) -> dict[str, Any]:
        """The sensitivity of the latency to each granularity, and the weights that balance them (section 3.2)."""
        sensitivities = self.latency(table).sensitivities()
        weights = sensitivities.balanced()
        return {"change_ms": dataclasses.asdict(sensitivities), "weights": dataclasses.asdict(weights)}

    def problem(self, table: LatencyTable | None, seed: int) -> CoSearch | NetworkSampling:
        """The search problem, initialised from ``seed``: teacher and student over one supernet, priced by ``table``,
        or sampled networks of a supernet.
        """
        if table is None:
            raise UserError(f"{self.name}: a search of this space needs a latency table (dnas latency build)")
        seed_everything(mix_seed("weights", seed))
        search = self.search
        if isinstance(search, EstimatorSearchConfig):
            return NetworkSampling(
                self.supernet(),
                self.plan(),
                networks=search.networks_per_step,
                largest_first=search.largest_first,
                seed=mix_seed("watched", seed),
            )
        latencies = {name: self.latency(table, name) for name in self.end_ratios}
        try:
            return CoSearch(
                self.supernet(),
                self.architectures(seed),
                latencies,
                decoupled=decoupled_weights(search.decoupling, latencies["student"]),
                pretrain_passes=search.pretrain_passes,
                search_passes=search.search_passes,
                temperature=search.temperature,
                temperature_end=search.temperature_end,
                single_path=search.operator_sampling == "single_path",
                recompute=search.recompute,
                batch_equal_passes=search.batches_equal_passes,
            )
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from None


def decoupled_weights(decoupling: str | tuple[float, float, float], latency: ExpectedLatency) -> DecoupledWeights:
    """The factors w1, w2, w3 that ``search.decoupling`` gives."""
    if decoupling == "none":
        return DecoupledWeights()
    if isinstance(decoupling, str):
        return latency.sensitivities().balanced()
    return DecoupledWeights(*decoupling)
