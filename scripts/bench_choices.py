"""Time of one search step of the generic engine against that of FasterSeg's own supernet, on FasterSeg's small space.

Both search operators, widths and paths of a grid of the same layers, scales, ratios and operators
(fasterseg_camvid_small). The generic one is the grid network of the space fasterseg_dilated without dilated blocks.
Both run the student's passes at the smallest, the largest and sampled widths, and one architecture pass, on random
images, step by step in turn in one process, so that other work on the machine slows both. Printed are medians, and
ratios of adjacent steps.

    python scripts/bench_choices.py --steps 5 --threads 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from dnas.library_settings import missing_settings

CLASSES = 11
OPERATORS = ("skip", "conv", "conv_x2", "zoomed_conv", "zoomed_conv_x2")
PASSES = ("smallest", "largest", "sampled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--crop", type=int, nargs=2, default=(128, 160), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--single-path", action="store_true", help="one operator in each cell and pass")
    arguments = parser.parse_args()
    os.environ.update(missing_settings(os.environ))
    print("| engine | wall (s) | CPU (s) | ratio of wall times | of CPU times |\n|---|---|---|---|---|")
    found = measure(arguments)
    first = found["FasterSeg's"]
    for name, steps in found.items():
        walls, cpus = (statistics.median(column) for column in zip(*steps, strict=True))
        ratios = [statistics.median(one[i] / base[i] for one, base in zip(steps, first, strict=True)) for i in (0, 1)]
        print(f"| {name} | {walls:.3f} | {cpus:.3f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


def measure(arguments: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU time of every timed step."""
    import torch

    from dnas.search.calibration import freeze_bn_stats

    torch.set_num_threads(arguments.threads)
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            name: make(arguments, Path(folder) / str(number))
            for number, (name, make) in enumerate((("FasterSeg's", special), ("generic", generic)))
        }
        generator = torch.Generator().manual_seed(0)
        height, width = arguments.crop
        images = torch.randn(arguments.batch, 3, height, width, generator=generator)
        labels = torch.randint(CLASSES, (arguments.batch, height, width), generator=generator)
        for number in range(arguments.warm_up + arguments.steps):
            for name, session in sessions.items():
                begun = now(arguments.device)
                with freeze_bn_stats(session.problem.weights):
                    noise = torch.Generator().manual_seed(number)
                    session._weight_step((images, labels), "search", noise)
                    session._architecture_step((images, labels), noise)
                ended = now(arguments.device)
                if number >= arguments.warm_up:
                    found.setdefault(name, []).append((ended[0] - begun[0], ended[1] - begun[1]))
        for session in sessions.values():
            session.release()
            session.run.close()
    return found


def special(arguments: argparse.Namespace, folder: Path) -> Any:
    """The search of FasterSeg's space, of the student alone."""
    from search_spaces import space_from
    from search_spaces.fasterseg import CoSearch, DecoupledWeights, ExpectedLatency

    network = {"layers": arguments.layers, "ratios": [2, 4, 6], "student_ratio": 4, "teacher_ratio": 6}
    space = space_from({**common(arguments, "fasterseg"), "network": network}, "benchmark")
    problem = CoSearch(
        space.supernet(),
        {"student": space.architectures(0)["student"]},
        {"student": ExpectedLatency(space.plan("student"), lambda spec: 1e-3 * spec.out_channels)},
        decoupled=DecoupledWeights(),
        pretrain_passes=["student.largest"],
        search_passes=[f"student.{width}" for width in PASSES],
        single_path=arguments.single_path,
    )
    return session_of(arguments, problem, space, folder)


def generic(arguments: argparse.Namespace, folder: Path) -> Any:
    """The search of the same grid as a network with choices."""
    from dnas.choices import Kind
    from dnas.pricing import ExpectedLatency, latency_terms
    from search_spaces import space_from
    from search_spaces.choices import ChoiceSearch

    network = {"layers": arguments.layers, "ratios": [2, 4, 6], "end_ratio": 4, "operators": list(OPERATORS)}
    space = space_from({**common(arguments, "fasterseg_dilated"), "network": network}, "benchmark")
    latency = ExpectedLatency(latency_terms(space.priced, lambda spec: 1e-3 * spec.out_channels), space.priced.sizes)
    kinds = {"operator": Kind(sampler="single_path" if arguments.single_path else "softmax")}
    problem = ChoiceSearch(space.supernet(), latency, kinds=kinds, search_passes=PASSES)
    return session_of(arguments, problem, space, folder)


def common(arguments: argparse.Namespace, space: str) -> dict[str, Any]:
    """The settings that both have."""
    search = {"batch_size": arguments.batch, "augmentation": {"crop": list(arguments.crop)}}
    return {"space": space, "task": {"input_size": [240, 320], "num_classes": CLASSES}, "search": search}


def session_of(arguments: argparse.Namespace, problem: Any, space: Any, folder: Path) -> Any:
    """The search loop, whose steps are called by hand."""
    import torch

    from dnas.data import DataConfig, open_dataset
    from dnas.progress import NoProgress
    from dnas.runs import RunFolder
    from dnas.search.bilevel import BilevelSearch

    size = (arguments.crop[0], arguments.crop[1])
    data = open_dataset(DataConfig(dataset="streets", size=size, images={"train": 16, "val": 1}), "train")
    run = RunFolder.create(folder, "search", {}, 0, False, device=arguments.device)
    return BilevelSearch(problem, (data, data), run, space.search, torch.device(arguments.device), NoProgress())


def now(device: str) -> tuple[float, float]:
    """Wall and CPU time in s after synchronising with the device."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
