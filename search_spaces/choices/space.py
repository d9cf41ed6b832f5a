"""Search spaces that are networks with choices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from dnas.choices import Choice, ChoiceNetwork, HardRun, Kind, RateChoice, hard_run, kind_of, named_choices
from dnas.data.seeding import mix_seed
from dnas.errors import UserError
from dnas.input_channels import RGB, with_input_channels
from dnas.latency.spec import InventoryItem
from dnas.latency.table import LatencyTable
from dnas.ops import nearest
from dnas.pricing import ChoiceInventory, ExpectedLatency, LatencyProgramme, Term, inventory_of, latency_terms
from dnas.profile import meta_copy
from dnas.runs import seed_everything
from dnas.search import EstimatorSearchConfig
from search_spaces.base import SearchSpace
from search_spaces.choices.config import ChoiceConfig, ChoiceSearchConfig
from search_spaces.choices.one_shot import ChoiceSampling
from search_spaces.choices.parameters import ARCHITECTURE
from search_spaces.choices.problem import ChoiceSearch

Settings = TypeVar("Settings", bound=ChoiceConfig)


class ChoiceSpace(SearchSpace[Settings]):
    """A search space that is a network with choices; a subclass gives the network, everything else follows from it.

    version: of the network. Increase it when the choices change, so that old architecture files are refused.
    """

    settings_type: ClassVar[type] = ChoiceConfig
    steered = ARCHITECTURE
    version: ClassVar[int] = 1

    @abstractmethod
    def network(self) -> nn.Module:
        """The network with newly initialised weights: images (N, 3, H, W) -> logits (N, num_classes, h, w).

        May raise :class:`UserError` for settings that do not fit together; what calls it adds the name of the preset.
        """

    def rounded(self, rates: Mapping[str, float]) -> Mapping[str, int]:
        """Integer dilation rates for the searched ones, by the choices' names; the nearest ones by default."""
        return nearest(rates)

    @property
    def search(self) -> ChoiceSearchConfig | EstimatorSearchConfig:
        """Settings of the search."""
        return self.settings.search

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """Settings of the kinds of choices; those of the method "estimator" are drawn, without any."""
        return self.search.kinds if isinstance(self.search, ChoiceSearchConfig) else {}

    @cached_property
    def priced(self) -> ChoiceInventory:
        """The network's units with their signatures; the network is run once, without computing anything."""
        supernet = self.supernet()
        try:
            return inventory_of(supernet, self.input_size, self.channels)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from None

    def made(self) -> nn.Module:
        """The network for the images of the task, which may have other than three channels.

        Raises :class:`UserError`, with the name of the preset, for settings that do not fit together.
        """
        try:
            return with_input_channels(self.network(), self.channels)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from None

    def supernet(self) -> ChoiceNetwork:
        """The network, ready to run samples."""
        return ChoiceNetwork(self.made())

    def example(self) -> torch.Tensor:
        """An image of the input size without content."""
        return torch.empty(1, self.channels, *self.input_size, device="meta")

    def seen(self, indices: Mapping[str, int]) -> HardRun:
        """What a run of the network with the options ``indices`` shows; nothing is computed."""
        return hard_run(self.shadow, indices, self.example())

    def inventory(self) -> list[InventoryItem]:
        """All units at all widths that can reach them."""
        return list(self.priced.items)

    def terms(self, table: LatencyTable) -> list[Term]:
        """The parts of the latency, from the entries of ``table``."""
        return latency_terms(self.priced, table.lookup)

    def latency(self, table: LatencyTable) -> ExpectedLatency:
        """The expected latency; its gradient has the weights of the kinds."""
        weights = {name: kind_of(choice.kind, self.kinds).latency_weight for name, choice in self.choices.items()}
        return ExpectedLatency(self.terms(table), self.priced.sizes, weights)

    def programme(self, table: LatencyTable) -> LatencyProgramme:
        """The integer programme over all choices."""
        return LatencyProgramme(self.terms(table), self.priced.sizes)

    @cached_property
    def shadow(self) -> nn.Module:
        """The network on the meta device in evaluation mode: its structure without weights."""
        try:
            with torch.device("meta"):
                return self.made().eval()
        except (RuntimeError, NotImplementedError):  # it computes with tensors when it is made
            return meta_copy(self.made()).eval()

    @cached_property
    def choices(self) -> Mapping[str, Choice]:
        """The network's choices by name, for their options and kinds."""
        return named_choices(self.shadow)

    def problem(self, table: LatencyTable | None, seed: int) -> ChoiceSearch | ChoiceSampling:
        """The search problem, with weights initialised from ``seed``."""
        if table is None:
            raise UserError(f"{self.name}: a search of this space needs a latency table (dnas latency build)")
        seed_everything(mix_seed("weights", seed))
        search = self.search
        supernet = self.supernet()
        if isinstance(search, EstimatorSearchConfig):
            if all(isinstance(choice, RateChoice) for choice in supernet.choices.values()):
                raise UserError(
                    f"{self.name}: search.method: given estimator, which compares options, but the network has only "
                    "dilation rates; use gradient"
                )
            return ChoiceSampling(
                supernet, networks=search.networks_per_step, largest_first=search.largest_first, seed=seed
            )
        known = {choice.kind for choice in supernet.choices.values()}
        if unknown := sorted(set(search.kinds) - known):
            raise UserError(
                f"{self.name}: search.kinds: given {', '.join(unknown)}, the network has {', '.join(sorted(known))}"
            )
        return ChoiceSearch(
            supernet,
            self.latency(table),
            kinds=search.kinds,
            pretrain_passes=search.pretrain_passes,
            search_passes=search.search_passes,
        )

    def description(self) -> dict[str, Any]:
        """The configuration that determines the network: without search, retraining and latency target."""
        left_out = ("search", "retrain", "latency_target_ms")
        found = {key: value for key, value in self.configuration().items() if key not in left_out}
        if self.channels == RGB:  # as files of earlier versions have it
            found["task"] = {key: value for key, value in found["task"].items() if key != "channels"}
        return found
