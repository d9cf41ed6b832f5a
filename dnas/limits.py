"""Limits for values from files: nesting, and the size to which shared parts would expand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

MAX_DEPTH = 100
MAX_DIGITS = 100
"""Digits of a number in a file; reading thousands takes quadratic time, and Python refuses to print them."""


def check_graph(root: Any, children: Callable[[Any], Iterable[Any]], *, depth: int, size: int) -> None:
    """Check the graph of objects below ``root`` in linear time; ``children`` gives the parts of one.

    Raises :class:`ValueError` if it contains itself, is nested deeper than ``depth``, or has more than ``size`` parts
    when each is counted as often as it is reached: code that walks along every reference would not end.
    """
    found: dict[int, tuple[int, int]] = {}  # depth and size of what has been walked
    begun: set[int] = set()
    stack = [(root, False)]
    while stack:
        value, done = stack.pop()
        key = id(value)
        if done:
            begun.discard(key)
            parts = [found[id(part)] for part in children(value)]
            deepest = 1 + max((part[0] for part in parts), default=0)
            count = 1 + sum(part[1] for part in parts)
            if deepest > depth:
                raise ValueError(f"nested more than {depth} levels deep")
            if count > size:
                raise ValueError(f"expands to more than {size} values, as parts are referred to again and again")
            found[key] = deepest, count
        elif key in begun:
            raise ValueError("a value contains itself")
        elif key not in found:
            begun.add(key)
            stack.append((value, True))
            stack.extend((part, False) for part in children(value))


def check_depth(value: Any) -> None:
    """Raise :class:`ValueError` if the lists and dicts of a tree are nested deeper than :data:`MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [part for part in level if isinstance(part, (dict, list))]
        level = [part for outer in inner for part in (outer.values() if isinstance(outer, dict) else outer)]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
