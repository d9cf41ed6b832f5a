"""Python's garbage collector, during long loops."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def settled_objects() -> Iterator[None]:
    """Within, the collector looks at objects made since, not again and again at the million that imports leave.

    Every third or fourth step of a search it did so for a third of a second, all threads waiting.
    """
    if gc.get_freeze_count():  # somebody else's decision
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
