"""What single-path sampling of operators does to a search: a small one of each kind on `streets`, side by side.

Both searches run at the same time, one thread each, so that a busy machine slows both. Prints a table in Markdown. What
is in the folder already is not done again, and an interrupted search goes on.

    python scripts/single_path.py --out DIR
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from dnas.runs import RunFolder

KINDS = ("mixed", "single_path")
PRESET = "fasterseg_demo"


def main() -> None:
    options = parse_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    space = [f"network.layers={options.layers}"]
    table = options.out / "table.json"
    measure = ["--threads", "1", "--rounds", "3", "--time-per-entry", "0.03"]
    if not table.exists():
        dnas("latency", "build", PRESET, "--out", str(table), *measure, *settings(space)).wait()
    epochs = [f"search.pretrain_epochs={options.pretrain_epochs}", f"search.search_epochs={options.search_epochs}"]
    running = []
    for kind in KINDS:
        run = options.out / kind
        if finished(run, options.pretrain_epochs + options.search_epochs):
            continue
        command = ["search", PRESET, "--data", "streets", "--table", str(table), "--out", str(run)]
        command += [
            "--data-set",
            "size=[96,192]",
            "--data-set",
            f"images={{train: {options.images}, val: 24, test: 8}}",
        ]
        command += settings([*space, *epochs, f"search.operator_sampling={kind}"])
        running.append(dnas(*command, *(["--resume"] if run.exists() else [])))
    statuses = [process.wait() for process in running]  # of all, before giving up for one
    if any(statuses):
        sys.exit("a search failed")
    print("| operators | s a step | peak (MB) | mIoU teacher (%) | mIoU student (%) | expected (ms) | derived (ms) |")
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        print(row(kind, options.out))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--images", type=int, default=96, help="training images")
    parser.add_argument("--pretrain-epochs", type=int, default=3)
    parser.add_argument("--search-epochs", type=int, default=5)
    return parser.parse_args()


def dnas(*arguments: str) -> subprocess.Popen[bytes]:
    """The command line in a process of its own, so that its peak memory is its own; one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "dnas", *arguments], env=environment)


def settings(values: list[str]) -> list[str]:
    """The values as options of the command line."""
    return [word for value in values for word in ("--set", value)]


def finished(run: Path, epochs: int) -> bool:
    """Whether the run is there with all its epochs."""
    return run.exists() and len(RunFolder.open(run).records("epoch")) >= epochs


def row(kind: str, out: Path) -> str:
    """The line of a search."""
    run = RunFolder.open(out / kind)
    last = run.records("epoch")[-1]
    seconds = statistics.median(step["seconds"] for step in run.records("step") if step["phase"] == "search")
    file = out / f"{kind}.yaml"
    derive = [sys.executable, "-m", "dnas", "derive", str(out / kind), "--out", str(file), "--json"]
    derived = json.loads(subprocess.run(derive, check=True, stdout=subprocess.PIPE).stdout)["latency_ms"]
    miou = " | ".join(f"{100 * last['miou'][name]:.1f}" for name in ("teacher", "student"))
    return (
        f"| {kind} | {seconds:.2f} | {last['peak_memory_mb']:.0f} | {miou} | "
        f"{last['latency_ms']['student']:.3f} | {derived:.3f} |"
    )


if __name__ == "__main__":
    main()
