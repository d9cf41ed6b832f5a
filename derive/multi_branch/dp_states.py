"""Branch groups, states and decisions of the dynamic programme in :mod:`derive.multi_branch.latency_dp`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BranchGroup:
    """Branches that share the current cell, by their final levels, with constraints on their paths.

    ``level1_entry``: the layer at which the branch to level 1 must enter level 1. ``level2_deadline``: the last layer
    at which the branch to level 2 may enter level 2. None: no constraint.
    """

    ends: tuple[int, ...]
    level1_entry: int | None = None
    level2_deadline: int | None = None

    def subset(
        self, ends: tuple[int, ...], level1_entry: int | None = None, level2_deadline: int | None = None
    ) -> BranchGroup:
        """The branches that end at ``ends``, with their existing and new constraints."""
        return BranchGroup(
            ends,
            (level1_entry or self.level1_entry) if 1 in ends else None,
            (level2_deadline or self.level2_deadline) if 2 in ends else None,
        )

    def may_keep(self, level: int) -> bool:
        """Whether all branches may stay at ``level``."""
        return level <= min(self.ends)

    def may_go(self, level: int, layer: int) -> bool:
        """Whether all branches may enter ``level`` at ``layer``."""
        if level > min(self.ends):
            return False
        if level == 1 and 1 in self.ends and self.level1_entry is not None and layer != self.level1_entry:
            return False
        return not (level == 2 and self.level2_deadline is not None and layer > self.level2_deadline)


@dataclass(frozen=True)
class State:
    """A state of the dynamic programme: position in the tree and indices of two widths.

    ``flow``: the width of the cell's input; ``read``: the width that is finally read from the last operator before it.
    """

    group: BranchGroup
    level: int
    layer: int
    flow: int
    read: int


@dataclass(frozen=True)
class Choice:
    """A cell's operator with the next state and connection width; at a branching point, the two groups instead."""

    operator: int
    next_state: State | None = None
    width: int = 0
    split: tuple[BranchGroup, BranchGroup] | None = None


@dataclass
class Decisions:
    """The decisions of the optimal tree, collected during backtracking."""

    entered: dict[int, list[int]] = field(default_factory=dict)
    operators: dict[tuple[int, int], int] = field(default_factory=dict)
    widths: dict[tuple[int, int], int] = field(default_factory=dict)
