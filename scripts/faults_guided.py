"""Coverage-guided fuzzing of the readers, for example ``python -m scripts.faults_guided --minutes 60``.

Needs ``pip install atheris``. The readers are the fast ones of ``scripts/faults.py``. Ends with a table of tries and
failures.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dnas", "derive", "search_spaces", "yaml"]):
    from scripts.faults import Outcome, attempt, kinds, print_table

FAST = [
    *("space.yaml", "data.yaml", "classes.yaml", "space_architecture.yaml", "table.json", "journal.jsonl", "table.npy"),
    *("state.pt", "weights.safetensors", "space/judged.jsonl", "space/environment.json"),
]


def main() -> None:
    """Fuzz for some minutes; the first byte of an input chooses the reader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    minutes = parser.parse_args().minutes
    folder = Path(tempfile.mkdtemp())
    available = kinds(folder)
    chosen = [available[name] for name in FAST]
    outcomes = {kind.name: Outcome() for kind in chosen}
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, kind in enumerate(chosen):
        (corpus / f"{number}").write_bytes(bytes([number]) + kind.good)
    started = time.monotonic()

    def one(data: bytes) -> None:
        if time.monotonic() - started > 60 * minutes:
            print_table(outcomes, f"coverage-guided, {(time.monotonic() - started) / 60:.1f} minutes")
            sys.stdout.flush()
            os._exit(int(any(outcome.failures for outcome in outcomes.values())))  # libFuzzer has no other end
        if data:
            kind = chosen[data[0] % len(chosen)]
            attempt(kind, data[1:], outcomes[kind.name])

    atheris.Setup([sys.argv[0], str(corpus), "-max_len=65536", "-timeout=120", "-verbosity=0"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
