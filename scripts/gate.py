"""The gate: all checks that a change must pass, the same on a developer's machine and in CI.

``python scripts/gate.py`` runs all checks, continues after a failed one, and ends with a summary and status 1 if any
failed. ``python scripts/gate.py ruff mypy`` runs only these checks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CHECKS: dict[str, list[str]] = {
    "ruff": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "imports": ["lint-imports", "--no-logo"],
    "docs": ["mkdocs", "build", "--quiet", "--strict", "--site-dir", str(Path(tempfile.gettempdir()) / "dnas-docs")],
    "tests": ["pytest", "-q", "-n", "2", "--dist", "loadfile"],
}


def main(arguments: list[str]) -> int:
    """Run the named checks, by default all; returns the exit status."""
    unknown = [name for name in arguments if name not in CHECKS]
    if unknown:
        print(f"unknown check: {', '.join(unknown)}; known: {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    results = {name: run(name) for name in arguments or CHECKS}
    print("\ngate:")
    for name, (status, seconds) in results.items():
        print(f"  {name:8} {'passed' if status == 0 else f'FAILED with status {status}'} in {seconds:.0f} s")
    failed = [name for name, (status, _) in results.items() if status != 0]
    print(f"gate: FAILED: {', '.join(failed)}" if failed else "gate: all checks passed")
    return 1 if failed else 0


def run(name: str) -> tuple[int, float]:
    """Run one check with the tools of this Python's environment; returns exit status and duration in seconds."""
    tool, *options = CHECKS[name]
    # The tools of this interpreter's environment, regardless of PATH.
    program = Path(sysconfig.get_path("scripts")) / tool
    print(f"\n== {name}: {' '.join(CHECKS[name])}", flush=True)
    start = time.monotonic()
    try:
        status = subprocess.run([program, *options], cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL).returncode
    except FileNotFoundError:
        print(f'{program}: not installed; pip install -e ".[dev]"', file=sys.stderr)
        status = 127
    return status, time.monotonic() - start


def environment() -> dict[str, str]:
    """The environment of the checks: one thread per process, as several test processes share the cores."""
    return {"OMP_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1", **os.environ}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
