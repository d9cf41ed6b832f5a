"""FasterSeg's search space (section 3): operators, downsampling positions and expansion ratios of several branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic
import torch
from typing_extensions import Self

from dnas.config import Field, config
from dnas.data.seeding import mix_seed
from dnas.errors import UserError
from dnas.latency.spec import InventoryItem, OperatorSpec
from dnas.latency.table import LatencyTable
from dnas.runs import seed_everything
from dnas.search import SearchConfig
from dnas.training import RetrainConfig
from search_spaces.base import SearchSpace, TaskConfig
from search_spaces.fasterseg.expected_latency import DecoupledWeights, ExpectedLatency
from search_spaces.fasterseg.grid import Grid
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

Operator = Literal["skip", "conv", "conv_x2", "zoomed_conv", "zoomed_conv_x2"]
_Ratio = Annotated[int, Field(ge=1, le=64)]


@config
class NetworkConfig:
    """The supernet; the defaults are the paper's (section 4.2).

    layers: L. scales: the downsample rates s. ratios: the expansion ratios X; a connection has ratio * scale channels.
    branches: b. student_ratio, teacher_ratio: expansion ratio of stem and head.
    """

    layers: int = Field(default=16, ge=2, le=64)
    scales: Annotated[tuple[int, ...], Field(max_length=3)] = (8, 16, 32)
    operators: tuple[Operator, ...] = ("skip", "conv", "conv_x2", "zoomed_conv", "zoomed_conv_x2")
    ratios: Annotated[tuple[_Ratio, ...], Field(min_length=1)] = (4, 6, 8, 10, 12)
    branches: int = Field(default=2, ge=1, le=3)
    student_ratio: _Ratio = 8
    teacher_ratio: _Ratio = 12

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        grid = Grid(self.layers, self.scales)
        if tuple(sorted(set(self.ratios))) != self.ratios:
            raise ValueError(f"ratios {list(self.ratios)}: expected distinct ratios in ascending order")
        if len(set(self.operators)) != len(self.operators) or not self.operators:
            raise ValueError(f"operators {list(self.operators)}: expected at least one, each once")
        if self.branches > len(grid.scales):
            raise ValueError(f"{self.branches} branches need as many scales, given {list(self.scales)}")
        return self

    @property
    def grid(self) -> Grid:
        """The grid of cells."""
        return Grid(self.layers, self.scales)


@config
class BranchSelectionConfig:
    """How branches are selected: by ACC * (LAT / T) ** w (Appendix B).

    reference_ms: T. exponent: w.
    """

    reference_ms: float = Field(default=8.3, gt=0)
    exponent: float = Field(default=-0.07, le=0)


@config
class FasterSegConfig:
    """A preset of this space.

    task: what its networks are for.
    latency_target_ms: the latency that the derived student is to have by the table, within 5 %, from either side; null
        leaves it to the paper's fixed lambda (``search.latency_weight``).
    """

    space: Literal["fasterseg"]
    task: TaskConfig
    latency_target_ms: float | None = Field(default=None, gt=0)
    branch_selection: BranchSelectionConfig = Field(default_factory=BranchSelectionConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    retrain: RetrainConfig = Field(default_factory=RetrainConfig)


class FasterSegSpace(SearchSpace[FasterSegConfig]):
    """The space of a :class:`FasterSegConfig`."""

    settings_type = FasterSegConfig
    steered = "student"

    @property
    def search(self) -> SearchConfig:
        """How to search."""
        return self.settings.search

    @property
    def end_ratios(self) -> dict[str, int]:
        """Ratio of stem and head of the student and of the teacher."""
        network = self.settings.network
        return {"student": network.student_ratio, "teacher": network.teacher_ratio}

    def plan(self, architecture: str = "student") -> NetworkPlan:
        """What the networks of one architecture have in common."""
        network, task = self.settings.network, self.settings.task
        return NetworkPlan(
            network.grid,
            network.operators,
            network.ratios,
            network.branches,
            task.num_classes,
            task.input_size,
            self.end_ratios[architecture],
        )

    def inventory(self) -> list[InventoryItem]:
        """Every operator that a network of this space can contain, each signature once.

        A derived network has no skips of stride 1, so they are not measured.
        """
        return [inventory_item(spec) for spec in dict.fromkeys(self._signatures())]

    def _signatures(self) -> Iterator[OperatorSpec]:
        network, size = self.settings.network, self.input_size
        ends = sorted(set(self.end_ratios.values()))
        for end in ends:
            yield stem_signature(end, size)
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
                    # Skips up to the head narrow the operator before them, of either stride, to the head's width.
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
        """Fresh architecture parameters of the teacher, which does not search ratios, and of the student."""
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
        """The expected latency of one architecture's samples by ``table``."""
        return ExpectedLatency(self.plan(architecture), table.lookup)

    def decoupled_weights(self, latency: ExpectedLatency) -> DecoupledWeights:
        """The factors w1, w2, w3 that the configuration asks for."""
        wanted = self.search.decoupling
        if wanted == "none":
            return DecoupledWeights()
        if wanted == "solved":
            return latency.sensitivities().balanced()
        return DecoupledWeights(*wanted)

    def describe_prices(self, table: LatencyTable) -> dict[str, Any]:
        """How much each kind of choice moves the latency, and the weights that balance them (section 3.2)."""
        found = self.latency(table).sensitivities()
        return {"change_ms": dataclasses.asdict(found), "weights": dataclasses.asdict(found.balanced())}

    def problem(self, table: LatencyTable | None, seed: int) -> CoSearch:
        """Teacher and student over one supernet, initialised by ``seed``, priced by ``table``."""
        if table is None:
            raise UserError(f"{self.name}: a search of this space needs a latency table (dnas latency build)")
        latencies = {name: self.latency(table, name) for name in self.end_ratios}
        seed_everything(mix_seed("weights", seed))
        try:
            return CoSearch(
                self.supernet(),
                self.architectures(seed),
                latencies,
                decoupled=self.decoupled_weights(latencies["student"]),
                pretrain_passes=self.search.pretrain_passes,
                search_passes=self.search.search_passes,
                temperature=self.search.temperature,
                single_path=self.search.operator_sampling == "single_path",
                recompute=self.search.recompute,
                batch_equal_passes=self.search.batches_equal_passes,
            )
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from None
