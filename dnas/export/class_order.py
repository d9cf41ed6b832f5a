"""The classes of a file in the order of a dataset's: names decide, not positions."""

from __future__ import annotations

from collections.abc import Sequence

from dnas.errors import UserError


def class_order(own: Sequence[str], wanted: Sequence[str], source: str, data: str) -> tuple[int, ...]:
    """For each class of ``wanted`` its index in ``own``.

    ``source`` and ``data`` name the two lists in errors. Raises :class:`UserError` unless both have the same names.
    """
    missing = [name for name in wanted if name not in own]
    surplus = [name for name in own if name not in wanted]
    if missing or surplus:
        parts = [
            f"{text} {', '.join(map(repr, names[:5]))}{' and more' * (len(names) > 5)}"
            for text, names in ((f"only {data} has", missing), (f"only {source} has", surplus))
            if names
        ]
        raise UserError(
            f"{source} has {len(own)} classes, {data} has {len(wanted)}, and their names differ: {'; '.join(parts)}; "
            "use data with the same classes"
        )
    return tuple(own.index(name) for name in wanted)
