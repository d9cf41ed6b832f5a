"""Python's garbage collector during long loops."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def settled_objects() -> Iterator[None]:
    """Within, the collector only examines objects made since, not the million that imports leave.

    Otherwise it does so in every third or fourth step of a search, for a third of a second with all threads waiting.
    """
    if gc.get_freeze_count():  # another caller has decided
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
