"""Comparison of search settings: cost and results of searches on `streets` with different settings.

Runs the study in compare_searches.yaml: each search in a process of its own with one thread, as many at a time as the
machine has cores. The derived students are retrained with equal settings. Prints a Markdown table with mean and
standard deviation over the seeds. Finished runs in the folder are reused, interrupted runs are resumed; `dnas study
status DIR` and `dnas report DIR --by kind` read the same folder.

    python -m scripts.compare_searches --out DIR [--kinds plain,single_path] [--seeds 3]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dnas.errors import UserError
from dnas.progress import RichProgress
from dnas.runs import RunFolder
from dnas.workflows.study.config import StudyConfig, load_study
from dnas.workflows.study.graph import Job
from dnas.workflows.study.job import result_of
from dnas.workflows.study.running import run_study
from scripts.study.training import command

STUDY = Path(__file__).with_suffix(".yaml")
COLUMNS = {
    "s per step": ("seconds", 2),
    "peak (MB)": ("peak_mb", 0),
    "supernet, mIoU (%)": ("supernet", 1),
    "derived (ms)": ("latency_ms", 2),
    "retrained, mIoU (%)": ("retrained", 1),
}


def main() -> None:
    options = parse_arguments()
    with RichProgress() as progress:
        jobs = run_study(study(options), options.out, progress=progress)
    print(f"| search | {' | '.join(COLUMNS)} |")
    print(f"|---|{'---|' * len(COLUMNS)}")
    for kind in options.kinds:
        folders = [folders_of(jobs, options.out, kind, seed) for seed in range(options.seeds)]
        results = [figures(one) for one in folders]
        print(f"| {kind} | {' | '.join(spread([r[key] for r in results], *rest) for key, *rest in COLUMNS.values())} |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=["plain", "single_path"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--images", type=int, default=96, help="training images")
    parser.add_argument("--pretrain-epochs", type=int, default=3)
    parser.add_argument("--search-epochs", type=int, default=5)
    parser.add_argument("--retrain-epochs", type=int, default=12)
    return parser.parse_args()


def study(options: argparse.Namespace) -> StudyConfig:
    """The study with the values of the options."""
    loaded = load_study(STUDY)
    assert isinstance(loaded.vary, dict)
    known = loaded.vary["kind"]
    if unknown := [kind for kind in options.kinds if kind not in known]:
        raise UserError(f"--kinds {unknown[0]}: expected some of {', '.join(known)}")
    epochs = {"search.pretrain_epochs": options.pretrain_epochs, "search.search_epochs": options.search_epochs}
    values = {
        **loaded.values,
        "layers": options.layers,
        "train_images": options.images,
        "epochs": epochs,
        "retrain_epochs": options.retrain_epochs,
    }
    vary = {"seed": list(range(options.seeds)), "kind": {kind: known[kind] for kind in options.kinds}}
    return replace(loaded, values=values, vary=vary)


def folders_of(jobs: Sequence[Job], out: Path, kind: str, seed: int) -> dict[str, Path]:
    """The folders of the jobs of one search, by kind of job."""
    wanted = {"kind": kind, "seed": str(seed)}
    return {job.kind: job.folder(out) for job in jobs if job.values == wanted}


def figures(folders: Mapping[str, Path]) -> dict[str, float]:
    """Time, memory and results of a search; mIoU in percent."""
    search, student = RunFolder.open(folders["search"]), RunFolder.open(folders["student"])
    last = search.records("epoch")[-1]
    return {
        "seconds": statistics.median(step["seconds"] for step in search.records("step") if step["phase"] == "search"),
        "peak_mb": last["peak_memory_mb"],
        "supernet": 100 * last["miou"]["student"],
        "latency_ms": float(result_of(folders["architecture"])["latency_ms"]),
        "retrained": 100 * student.records("epoch")[-1]["miou"],
    }


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


if __name__ == "__main__":
    command(main)
