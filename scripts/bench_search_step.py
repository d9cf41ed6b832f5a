"""Time and peak memory of one step of FasterSeg's search: the weight step and the architecture step.

The space is the paper's (16 layers, five operators, ratios 4 to 12, two branches, teacher and student), the images are
random. Every variant runs in separate processes, so that peak memory can be measured, in interleaved rounds, so that
other work on the machine slows all of them. The figures are medians over the rounds; CPU time is the most robust one on
a busy machine. "Kept" are the activations that the largest forward pass saves for backward, without weights.

    python scripts/bench_search_step.py --threads 2 --variants published,mixed,single_path

If the speed of the machine varies over minutes, ``--in-turn`` is more reliable: all variants run step by step in turn
in one process, and the ratios of adjacent steps are compared. (This needs the memory of all variants together.)

Variants are words joined by "+": published (the structure of the published code, see published_step.py), reference
(every operator and every forward pass separately), mixed, single_path, unbatched (no forward passes in one batch),
unclipped (gradients accumulated in the momenta), recompute, bf16, bf16_momenta, channels_last.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

from dnas.library_settings import missing_settings

WORDS = (
    "published",
    "reference",
    "mixed",
    "single_path",
    "unbatched",
    "unclipped",
    "recompute",
    "bf16",
    "bf16_momenta",
    "channels_last",
)
CLASSES = 19


def main() -> None:
    arguments = parse()
    if arguments.child:
        print(json.dumps(measure(arguments)))
        return
    if arguments.in_turn:
        measure_in_turn(arguments)
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.variants.split(",")}
    for number in range(arguments.rounds):
        for name, results in found.items():
            results.append(run_child(name))
            wall, cpu = (statistics.median(results[-1][key]) for key in ("wall", "cpu"))
            print(f"round {number + 1}, {name}: wall {wall:.2f} s, CPU {cpu:.2f} s", file=sys.stderr, flush=True)
    print(
        "| variant | wall (s) | CPU (s) | weights, wall (s) | architecture, wall (s) | peak (GB) | kept (MB) | passes |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, results in found.items():
        print(row(name, results))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="published,mixed,mixed+bf16,single_path")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--crop", type=int, nargs=2, default=(96, 192), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of variants without bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per process")
    parser.add_argument("--warm-up", type=int, default=2, help="untimed steps before them")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each variant")
    parser.add_argument(
        "--in-turn", action="store_true", help="run all variants in this process, step by step in turn; print ratios"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in arguments.variants.split(","):
        if unknown := [word for word in name.split("+") if word not in WORDS]:
            parser.error(f"variant {name}: {unknown[0]} is none of {', '.join(WORDS)}")
    return arguments


def run_child(variant: str) -> dict[str, Any]:
    """Times (s), peak memory (GB) and forward passes of one process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", variant]
    environment = {**os.environ, **missing_settings(os.environ)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def row(name: str, results: list[dict[str, Any]]) -> str:
    """The table row of a variant."""

    def median(key: str) -> float:
        return float(statistics.median(value for result in results for value in result[key]))

    peak = max(result["peak"] for result in results)
    figures = " | ".join(f"{median(key):.2f}" for key in ("wall", "cpu", "weights", "architecture"))
    return f"| {name} | {figures} | {peak:.2f} | {results[0]['kept']:.0f} | {results[0]['passes']} |"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The work of a child process: warm-up steps, then timed steps."""
    import torch

    from dnas.training.collector import settled_objects

    torch.set_num_threads(arguments.threads)
    times: dict[str, list[float]] = {"wall": [], "cpu": [], "weights": [], "architecture": []}
    with tempfile.TemporaryDirectory() as folder, settled_objects():
        session, batch = make_session(arguments, arguments.child.split("+"), Path(folder) / "run")
        passes = count_passes(session.problem)
        for number in range(arguments.steps + arguments.warm_up):
            passes.clear()
            begun, between, ended = timed_step(session, batch, number, arguments.device, passes)
            if number >= arguments.warm_up:
                times["wall"].append(ended[0] - begun[0])
                times["cpu"].append(ended[1] - begun[1])
                times["weights"].append(between[0] - begun[0])
                times["architecture"].append(ended[0] - between[0])
        counted = f"{between[2]} + {ended[2] - between[2]}"
        peak = peak_memory(arguments.device)
        saved = saved_bytes(session, batch)
        session.release()
        session.run.close()
    return {**times, "peak": peak, "kept": saved / 1e6, "passes": counted}


def count_passes(problem: Any) -> list[int]:
    """A list to which every forward pass appends the number of passes in its batch."""
    passes: list[int] = []
    outputs = problem.outputs

    def counted(images: Any, forward: Any) -> Any:
        passes.append(forward.count)
        return outputs(images, forward)

    problem.outputs = counted
    return passes


def peak_memory(device: str) -> float:
    """Peak memory of this process, or of its tensors on an accelerator, in GB."""
    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def timed_step(
    session: Any, batch: tuple[Any, Any], number: int, device: str, passes: list[int]
) -> list[tuple[Any, ...]]:
    """Wall time, CPU time and number of passes before the weight step, between both steps, and at the end."""
    import torch

    from dnas.search.calibration import freeze_bn_stats

    generator = torch.Generator().manual_seed(number)
    found = [(*now(device), sum(passes))]
    with freeze_bn_stats(session.problem.weights):  # as in a search
        session._weight_step(batch, "search", generator)
        found.append((*now(device), sum(passes)))
        session._architecture_step(batch, generator)
        found.append((*now(device), sum(passes)))
    return found


def measure_in_turn(arguments: argparse.Namespace) -> None:
    """Print wall and CPU time of every variant, and their ratios to the first variant's steps of the same rounds."""
    os.environ.update(missing_settings(os.environ))
    import torch

    from dnas.training.collector import settled_objects

    torch.set_num_threads(arguments.threads)
    names = arguments.variants.split(",")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, settled_objects():
        made = {name: make_session(arguments, name.split("+"), Path(folder) / name) for name in names}
        for number in range(arguments.steps + arguments.warm_up):
            for name, (session, batch) in made.items():
                begun, _, ended = timed_step(session, batch, number, arguments.device, [])
                found[name].append((ended[0] - begun[0], ended[1] - begun[1]))
        for session, _ in made.values():
            session.release()
            session.run.close()
    print("| variant | wall (s) | from, to | CPU (s) | ratio of wall times | from, to | ratio of CPU times |")
    print("|---|---|---|---|---|---|---|")
    first = found[names[0]][arguments.warm_up :]
    for name, steps in found.items():
        timed = steps[arguments.warm_up :]
        walls, cpus = zip(*timed, strict=True)
        ratios = [step[0] / base[0] for step, base in zip(timed, first, strict=True)]
        cpu_ratio = statistics.median(step[1] / base[1] for step, base in zip(timed, first, strict=True))
        print(
            f"| {name} | {statistics.median(walls):.2f} | {min(walls):.2f}, {max(walls):.2f} "
            f"| {statistics.median(cpus):.2f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f}, {max(ratios):.2f} | {cpu_ratio:.2f} |"
        )


class SavedTensor:
    """A tensor saved in the autograd graph."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def saved_bytes(session: Any, batch: tuple[Any, Any]) -> int:
    """Bytes that the teacher's forward pass at its largest widths saves for backward, without weights."""
    import torch

    weights = {p.untyped_storage().data_ptr() for p in session.problem.supernet.parameters()}
    alive: weakref.WeakSet[SavedTensor] = weakref.WeakSet()  # tensors that the graph releases drop out

    def save(tensor: torch.Tensor) -> SavedTensor:
        alive.add(saved := SavedTensor(tensor))
        return saved

    passes = session.problem.weight_passes("search", torch.Generator().manual_seed(0))
    largest = next(one for one in passes if one.architecture.startswith("teacher"))
    with torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved.tensor):
        loss = session._loss(*session._move(batch), largest)
    storages = [saved.tensor.untyped_storage() for saved in alive]
    found = {storage.data_ptr(): storage.nbytes() for storage in storages if storage.data_ptr() not in weights}
    del loss
    return sum(found.values())


def now(device: str) -> tuple[float, float]:
    """Wall and CPU time in s after synchronising with the device."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def make_session(arguments: argparse.Namespace, words: list[str], folder: Path) -> tuple[Any, Any]:
    """The search and a random batch; latencies are proportional to the number of channels."""
    import torch
    from published_step import PublishedSearch, PublishedSupernet

    from dnas.data import DataConfig, open_dataset
    from dnas.progress import NoProgress
    from dnas.runs import RunFolder
    from dnas.search.bilevel import BilevelSearch
    from search_spaces.fasterseg import (
        CoSearch,
        DecoupledWeights,
        ExpectedLatency,
        FasterSegSpace,
        run_cell_reference,
    )

    height, width = arguments.crop
    space = FasterSegSpace.parse(
        {
            "space": "fasterseg",
            "task": {"input_size": [1024, 2048], "num_classes": CLASSES},
            "network": {"layers": arguments.layers},
            "search": {
                "batch_size": arguments.batch,
                "augmentation": {"crop": [height, width]},
                "precision": "bf16" if "bf16" in words else arguments.precision,
                "channels_last": "channels_last" in words,
                "gradient_clipping": None if "unclipped" in words else 5.0,
                "momentum_precision": "bf16" if "bf16_momenta" in words else "fp32",
                "operator_sampling": "single_path" if "single_path" in words else "mixed",
            },
        },
        "benchmark",
    )
    config = space.search
    problem = CoSearch(
        space.supernet(),
        space.architectures(0),
        {n: ExpectedLatency(space.plan(n), lambda spec: 1e-3 * spec.out_channels) for n in space.end_ratios},
        decoupled=DecoupledWeights(),
        pretrain_passes=config.pretrain_passes,
        search_passes=config.search_passes,
        single_path="single_path" in words,
        recompute="recompute" in words,
        batch_equal_passes=config.batches_equal_passes and not {"published", "reference", "unbatched"} & set(words),
    )
    data = open_dataset(DataConfig(dataset="streets", size=(height, width), images={"train": 8, "val": 1}), "train")
    run = RunFolder.create(folder, "search", {}, 0, False, device=arguments.device)
    published = "published" in words
    make = PublishedSearch if published else BilevelSearch
    session = make(problem, (data, data), run, config, torch.device(arguments.device), NoProgress())
    if published or "reference" in words:
        problem.run_cell = run_cell_reference
    if isinstance(session, PublishedSearch):
        problem.supernet.__class__ = PublishedSupernet  # the same weights with another forward pass
        session.prepare()
    session.classes = CLASSES  # replaces the classes of the dataset, whose images are not used
    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.randn(arguments.batch, 3, height, width, generator=generator),
        torch.randint(CLASSES, (arguments.batch, height, width), generator=generator),
    )
    return session, batch


if __name__ == "__main__":
    main()
