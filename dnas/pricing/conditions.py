"""When a part of a network runs: conditions on choices.

A condition is a disjunction of *cubes*; a cube maps choices to the options that it allows, and a choice that it does
not name may have any. Disjoint cubes have probabilities that add up, each a product, because choices are independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dnas.errors import UserError

Cube = tuple[tuple[str, frozenset[int]], ...]
"""Sorted by the choices' names."""

ALWAYS: Cube = ()
MAX_CUBES = 20_000


def cube_of(allowed: Mapping[str, Iterable[int]]) -> Cube:
    """The cube of the given options."""
    return tuple(sorted((name, frozenset(options)) for name, options in allowed.items()))


def both(one: Cube, other: Cube) -> Cube | None:
    """The conjunction; None if no sample satisfies it."""
    allowed = dict(one)
    for name, options in other:
        allowed[name] = allowed[name] & options if name in allowed else options
        if not allowed[name]:
            return None
    return cube_of(allowed)


def holds(cube: Cube, options: Mapping[str, int]) -> bool:
    """Whether the options, indices by name, satisfy a cube."""
    return all(options[name] in allowed for name, allowed in cube)


def disjoint(cubes: Iterable[Cube], sizes: Mapping[str, int]) -> list[Cube]:
    """Disjoint cubes with the same disjunction; ``sizes``: the number of options of every choice.

    By expansion: the options of one choice after another are told apart, and those with the same rest are joined.
    """
    found = _expanded(frozenset(cubes), sizes, {})
    if len(found) > MAX_CUBES:
        raise UserError(f"a part of the network runs in {len(found)} different cases, more than can be priced")
    return found


def _expanded(cubes: frozenset[Cube], sizes: Mapping[str, int], known: dict[frozenset[Cube], list[Cube]]) -> list[Cube]:
    if ALWAYS in cubes:
        return [ALWAYS]
    if len(cubes) <= 1:
        return list(cubes)
    if cubes not in known:
        counts: dict[str, int] = {}
        for cube in cubes:
            for name, _ in cube:
                counts[name] = counts.get(name, 0) + 1
        name = min(counts, key=lambda one: (-counts[one], one))
        rests: dict[frozenset[Cube], set[int]] = {}
        for option in range(sizes[name]):
            rest = frozenset(
                tuple(literal for literal in cube if literal[0] != name)
                for cube in cubes
                if option in dict(cube).get(name, {option})
            )
            rests.setdefault(rest, set()).add(option)
        found: list[Cube] = []
        for rest, options in rests.items():
            head = ALWAYS if len(options) == sizes[name] else cube_of({name: options})
            found += [joined for cube in _expanded(rest, sizes, known) if (joined := both(head, cube)) is not None]
        known[cubes] = found
    return known[cubes]
