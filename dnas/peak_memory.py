"""Peak memory of this process, on any system."""

from __future__ import annotations

import sys


def peak_resident_bytes() -> int:
    """The largest resident memory of this process since its start, in bytes."""
    try:
        import resource  # not on Windows
    except ImportError:
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
