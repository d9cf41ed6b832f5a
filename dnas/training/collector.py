"""Python's garbage collector during long loops."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def settled_objects() -> Iterator[None]:
    """Context in which the garbage collector ignores all objects that exist at its start, about a million.

    Otherwise it examines them in every third or fourth step of a search, which blocks all threads for a third of a
    second.
    """
    if gc.get_freeze_count():  # already frozen by another caller
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
