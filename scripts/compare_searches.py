"""Comparison of search settings: cost and results of searches on `streets` with different settings.

For each seed the searches of all kinds run at the same time with one thread each, so that other work on the machine
slows all of them. The derived students are retrained with equal settings. Prints a Markdown table with mean and
standard deviation over the seeds. Finished runs in the folder are reused, interrupted runs are resumed.

    python scripts/compare_searches.py --out DIR [--kinds plain,single_path] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dnas.runs import RunFolder

KINDS: dict[str, list[str]] = {
    "plain": [],
    "single_path": ["operator_sampling=single_path"],
    "bf16": ["precision=bf16", "momentum_precision=bf16"],
    "unclipped": ["gradient_clipping=null"],
    "unclipped_bf16_momenta": ["gradient_clipping=null", "momentum_precision=bf16"],
}
PRESET = "fasterseg_demo"
COLUMNS = {
    "s per step": ("seconds", 2),
    "peak (MB)": ("peak_mb", 0),
    "supernet, mIoU (%)": ("supernet", 1),
    "derived (ms)": ("latency_ms", 2),
    "retrained, mIoU (%)": ("retrained", 1),
}


def main() -> None:
    options = parse_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    space = settings([f"network.layers={options.layers}"])
    table = options.out / "table.json"
    if not table.exists():
        measure = ["--threads", "1", "--rounds", "3", "--time-per-entry", "0.03"]
        wait([dnas("latency", "build", PRESET, "--out", str(table), *measure, *space)])
    images = ["--data-set", "size=[96,192]", "--data-set", f"images={{train: {options.images}, val: 24, test: 8}}"]
    epochs = {"pretrain_epochs": options.pretrain_epochs, "search_epochs": options.search_epochs}
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in options.kinds}
    for seed in range(options.seeds):
        common = ["--data", "streets", *images, "--seed", str(seed)]
        searches = {kind: options.out / f"{kind}_{seed}" for kind in options.kinds}
        running = []
        for kind, run in searches.items():
            if not finished(run, sum(epochs.values())):
                chosen = [f"search.{name}={value}" for name, value in epochs.items()]
                chosen += [f"search.{setting}" for setting in KINDS[kind]]
                command = ["search", PRESET, "--table", str(table), "--out", str(run), *common]
                running.append(dnas(*command, *space, *settings(chosen), *resume_option(run)))
        wait(running)
        latencies = {kind: derive(run) for kind, run in searches.items()}
        running = []
        for run in searches.values():
            student = run.with_name(f"{run.name}_student")
            if not finished(student, options.retrain_epochs):
                chosen = settings([f"epochs={options.retrain_epochs}"])
                command = ["retrain", f"{run}.yaml", "--recipe", PRESET, "--out", str(student), *common]
                running.append(dnas(*command, *chosen, *resume_option(student)))
        wait(running)
        for kind, run in searches.items():
            found[kind].append({"latency_ms": latencies[kind], **figures(run)})
    print(f"| search | {' | '.join(COLUMNS)} |")
    print(f"|---|{'---|' * len(COLUMNS)}")
    for kind, results in found.items():
        print(f"| {kind} | {' | '.join(spread([r[key] for r in results], *rest) for key, *rest in COLUMNS.values())} |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--kinds", type=kinds, default=["plain", "single_path"], help=f"of {', '.join(KINDS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--images", type=int, default=96, help="training images")
    parser.add_argument("--pretrain-epochs", type=int, default=3)
    parser.add_argument("--search-epochs", type=int, default=5)
    parser.add_argument("--retrain-epochs", type=int, default=12)
    return parser.parse_args()


def kinds(text: str) -> list[str]:
    """Names of kinds, separated by commas."""
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(KINDS)}")
    return names


def dnas(*arguments: str) -> subprocess.Popen[bytes]:
    """Start a command of dnas with one thread, in a separate process so that its peak memory can be measured."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "dnas", *arguments], env=environment)


def wait(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for all processes; then exit if one of them failed."""
    statuses = [process.wait() for process in running]
    if any(statuses):
        sys.exit("a run failed")


def settings(values: Sequence[str]) -> list[str]:
    """The values as options of the command line."""
    return [word for value in values for word in ("--set", value)]


def resume_option(run: Path) -> list[str]:
    return ["--resume"] if run.exists() else []


def finished(run: Path, epochs: int) -> bool:
    """Whether the run exists and has all epochs."""
    return run.exists() and len(RunFolder.open(run).records("epoch")) >= epochs


def derive(run: Path) -> float:
    """Derive the student to ``RUN.yaml`` and return its latency in ms."""
    command = [sys.executable, "-m", "dnas", "derive", str(run), "--out", f"{run}.yaml", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return float(json.loads(done.stdout)["latency_ms"])


def figures(run: Path) -> dict[str, float]:
    """Time, memory and results of a search; mIoU in percent."""
    search, student = RunFolder.open(run), RunFolder.open(run.with_name(f"{run.name}_student"))
    last = search.records("epoch")[-1]
    return {
        "seconds": statistics.median(step["seconds"] for step in search.records("step") if step["phase"] == "search"),
        "peak_mb": last["peak_memory_mb"],
        "supernet": 100 * last["miou"]["student"],
        "retrained": 100 * student.records("epoch")[-1]["miou"],
    }


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
