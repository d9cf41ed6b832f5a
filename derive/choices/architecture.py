"""The architecture of a network in which every choice is made."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import networkx as nx
from torch import nn

from derive.architecture import VERSION, Architecture, Count
from derive.choices.graph import unit_graph
from dnas.choices import plain_network
from dnas.config import Field, config
from dnas.errors import UserError
from dnas.latency.spec import OperatorSpec
from search_spaces import space_from
from search_spaces.choices import ChoiceSpace


@config
class ChoicesArchitecture(Architecture):
    """A network of a space that is a network with choices.

    space: the configuration that determines the network. space_version: that of the space. options: the option of every
    choice that the network uses, by the choice's name.
    """

    space: dict[str, Any]
    space_version: int
    options: dict[str, str]
    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    kind: Literal["choices"] = "choices"
    num_classes: Count | None = None
    input_size: tuple[Count, Count] | None = None
    provenance: dict[str, str] = Field(default_factory=dict)

    def check(self) -> None:
        """Raise :class:`UserError` unless the space is installed in this version and has these options."""
        self.indices(self.opened())

    def opened(self, num_classes: int | None = None, input_size: tuple[int, int] | None = None) -> ChoiceSpace[Any]:
        """The space, with other classes or another input size if given; it is opened once."""
        if (num_classes, input_size) not in self._opened:
            self._opened[num_classes, input_size] = self._open(num_classes, input_size)
        return self._opened[num_classes, input_size]

    @cached_property
    def _opened(self) -> dict[tuple[int | None, tuple[int, int] | None], ChoiceSpace[Any]]:
        return {}

    def _open(self, num_classes: int | None, input_size: tuple[int, int] | None) -> ChoiceSpace[Any]:
        task = dict(self.space.get("task", {}))
        if num_classes is not None:
            task["num_classes"] = num_classes
        if input_size is not None:
            task["input_size"] = list(input_size)
        space = space_from({**self.space, "task": task}, f"architecture of {self.space.get('space')}")
        if not isinstance(space, ChoiceSpace):
            raise UserError(f"space: {self.space.get('space')!r} is not a network with choices")
        if space.version != self.space_version:
            raise UserError(
                f"space_version: given {self.space_version}, the installed space {self.space.get('space')} has version "
                f"{space.version}: derive the network again, or install the version that it was derived with"
            )
        return space

    def indices(self, space: ChoiceSpace[Any]) -> dict[str, int]:
        """The indices of the options; raises :class:`UserError` for a choice or an option that the space lacks."""
        found = {}
        for name, option in self.options.items():
            choice = space.choices.get(name)
            if choice is None:
                raise UserError(f"options: {name}: unknown choice, expected one of {', '.join(space.choices)}")
            if option not in choice.labels:
                raise UserError(f"options.{name}: given {option!r}, expected one of {', '.join(choice.labels)}")
            found[name] = choice.labels.index(option)
        return found

    def build(self, num_classes: int) -> nn.Module:
        """The network without choices, with newly initialised weights."""
        space = self.opened(num_classes)
        indices = self.indices(space)
        return plain_network(space.made(), indices, seen=space.seen(indices))

    def signatures(self, num_classes: int, input_size: tuple[int, int]) -> list[OperatorSpec]:
        """The signatures of its units."""
        space = self.opened(num_classes, input_size)
        return space.priced.signatures(self.indices(space))

    def graph(self) -> nx.DiGraph:
        """The units of the network, grouped by the modules that they are in if there are many."""
        space = self.opened()
        return unit_graph(space, self.indices(space))

    def summary(self) -> list[dict[str, Any]]:
        """Every choice with its option."""
        return [{"choice": name, "option": option} for name, option in self.options.items()]

    def caption(self, name: str) -> str:
        """Caption of the drawing."""
        return f"{name}: the parts of the derived network with their channels, from the image to the logits."


def architecture_of(space: ChoiceSpace[Any], indices: Mapping[str, int]) -> ChoicesArchitecture:
    """The architecture of the given options; choices that the network does not use are left out."""
    used = space.seen(indices).used
    return ChoicesArchitecture(
        space=space.description(),
        space_version=space.version,
        options={n: c.labels[indices.get(n, 0)] for n, c in space.choices.items() if n in used},
        num_classes=space.num_classes,
        input_size=space.input_size,
    )
