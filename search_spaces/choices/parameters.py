"""The logits of a network with choices as architecture parameters."""

from __future__ import annotations

from torch import Tensor, nn

from dnas.choices import ChoiceNetwork, RateChoice

ARCHITECTURE = "network"
"""Name of the only architecture."""


def parameters_of(network: ChoiceNetwork) -> nn.ModuleDict:
    """The choices' logits, named ``network.KIND.CHOICE``."""
    by_kind: dict[str, nn.ParameterDict] = {}
    for name, choice in network.choices.items():
        by_kind.setdefault(choice.kind, nn.ParameterDict())[name_in_module(name)] = choice.logits
    return nn.ModuleDict({ARCHITECTURE: nn.ModuleDict(by_kind)})


def name_in_module(name: str) -> str:
    """The name of a choice's logits in a module, which has no dot."""
    return name.replace(".", "/")


def logits_of(network: ChoiceNetwork) -> dict[str, Tensor]:
    """Copies of the logits, named ``network.CHOICE``."""
    return {f"{ARCHITECTURE}.{name}": choice.logits.detach().clone() for name, choice in network.choices.items()}


def rates_of(network: ChoiceNetwork) -> dict[str, float]:
    """The dilation rates by the choices' names."""
    choices = network.choices.items()
    return {name: float(choice.rate().detach()) for name, choice in choices if isinstance(choice, RateChoice)}
