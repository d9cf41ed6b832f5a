"""``dnas demo``: the four jobs and the search of dilation rates on generated images."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnas.cli.common import ResumeOption, SeedOption, note

if TYPE_CHECKING:
    from dnas.data import DataConfig
    from dnas.latency import LatencyTable
    from dnas.progress import Progress

PRESET, DATA = "fasterseg_demo", "streets"
RATES_PRESET, RATES_DATA = "regseg_demo", "rectangles"


def demo(
    out: Annotated[Path, typer.Option("--out", help="The folder to write, with the result in report.html.")],
    seed: SeedOption = 0,
    resume: ResumeOption = False,
) -> None:
    """Run all jobs, from measuring to export, and a search of dilation rates on built-in images.

    Takes a few minutes on two CPU cores.
    """
    from derive import DeriveOptions, deriver_of
    from dnas.config import to_mapping
    from dnas.errors import UserError
    from dnas.progress import RichProgress
    from dnas.workflows.derivation import derive_network
    from dnas.workflows.retraining import run_retraining
    from dnas.workflows.search import run_search
    from search_spaces import load_space

    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not resume)):
        raise UserError(f"{out}: already exists; give another folder, or continue an interrupted demo with --resume")
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    table = _measure(out, resume)
    # A machine that is faster or slower has other latencies, so the target is the middle of what the space has here.
    ranges = deriver_of(load_space(PRESET)).latency_bounds(table).values()
    fastest, slowest = min(low for low, _ in ranges), max(high for _, high in ranges)
    target = float(f"{math.sqrt(fastest * slowest):.2g}")
    space = load_space(PRESET, [f"latency_target_ms={target}"])
    data = _data(space.input_size)
    with RichProgress() as progress:
        _announce(started, "2/7 training the networks of the space together, and judging some of them")
        run_search(space, data, table, out / "search", seed=seed, resume=resume, device="cpu", progress=progress)
        within = f"within 5 % of {target:g} ms; the space has {fastest:.2g} to {slowest:.2g} ms"
        _announce(started, f"3/7 deriving the best network {within}")
        options = DeriveOptions(device="cpu", progress=progress)
        architecture = derive_network(out / "search", options).architecture
        architecture.save(out / "student.yaml")
        _announce(started, "4/7 training it from scratch")
        run_retraining(
            {"architecture": to_mapping(architecture)},
            data,
            out / "student",
            space.retrain,
            source="student",
            seed=seed,
            resume=resume,
            device="cpu",
            progress=progress,
        )
        _announce(started, "5/7 searching dilation rates on rectangles")
        _search_rates(out, seed, resume, progress)
    _finish(out, started)


def _data(size: tuple[int, int]) -> DataConfig:
    from dnas.data import load_data_config

    return load_data_config(DATA, [f"size=[{size[0]}, {size[1]}]"])


def _search_rates(out: Path, seed: int, resume: bool, progress: Progress) -> None:
    """Search dilation rates; the task needs a large field of view (see :mod:`dnas.data.rectangles`)."""
    from derive import DeriveOptions
    from dnas.data import load_data_config
    from dnas.report import save_png
    from dnas.workflows.derivation import deriver_of_run
    from dnas.workflows.search import run_search
    from search_spaces import load_space

    space = load_space(RATES_PRESET)
    data = load_data_config(
        RATES_DATA, [f"size={list(space.input_size)}", "images={train: 80, val: 16, test: 16}", "cache=true"]
    )
    run_search(space, data, None, out / "rates", seed=seed, resume=resume, device="cpu", progress=progress)
    run, deriver = deriver_of_run(out / "rates")
    derivation = deriver.derive(run, DeriveOptions())
    derivation.architecture.save(out / "rates.yaml")
    for line in deriver.progress_lines(run):
        note(f"    {line}")
    note(f"    {out / 'rates.yaml'}: {list(derivation.lines())[-1]}")
    (out / "rates_pictures").mkdir(exist_ok=True)
    for name, drawing in deriver.search_drawings(run).items():
        save_png(drawing, out / "rates_pictures" / f"{name}.png")


def _measure(out: Path, resume: bool) -> LatencyTable:
    from dnas.latency import Effort, build_table, make_setup
    from dnas.progress import RichProgress
    from search_spaces import load_space

    space = load_space(PRESET)
    inventory = space.inventory()
    note(f"1/7 measuring {len(inventory)} operators on this machine's CPU")
    with RichProgress() as progress:
        return build_table(
            inventory,
            out / "table.json",
            # One thread: measurements on a busy machine are much more consistent.
            make_setup("cpu", threads=1),
            space=space.name,
            input_size=space.input_size,
            effort=Effort(rounds=3, time_per_entry=0.05, warm_up_s=0.005, extra_rounds=1),
            resume=resume,
            budget_s=40,
            progress=progress,
        )


def _finish(out: Path, started: float) -> None:
    from dnas.export import export_onnx
    from dnas.report import headline, write_report
    from dnas.workflows.derivation import deriver_of_run
    from dnas.workflows.networks import load_network
    from dnas.workflows.report import gather_report

    _announce(started, "6/7 exporting the student")
    student = load_network(str(out / "student"))
    assert student.input_size is not None
    assert student.labels is not None
    assert student.augmentation is not None
    parity = export_onnx(
        student.network,
        out / "student.onnx",
        student.input_size,
        class_names=student.labels.names,
        mean=student.augmentation.mean,
        std=student.augmentation.std,
    )
    note(f"    student.onnx differs from PyTorch by at most {parity.max_abs_difference:.2g}")
    _announce(started, "7/7 checking latencies, evaluating, writing the report")
    report = gather_report(
        out / "search",
        out / "student",
        None,
        networks=8,
        title="dnas demo",
        commands=(f"dnas demo --out {out}",),
    )
    run, deriver = deriver_of_run(out / "rates")
    sections = deriver.search_sections(run)
    write_report(out / "report.html", replace(report, extra=[*report.extra, *sections]))
    for figures in report.networks:
        facts = ", ".join(f"{fact.label} {fact.value} {fact.unit}" for fact in headline(figures))
        note(f"    {figures.name}: {facts}")
    _announce(started, f"done: open {out / 'report.html'}")


def _announce(started: float, text: str) -> None:
    minutes, seconds = divmod(round(time.perf_counter() - started), 60)
    note(f"[{minutes}:{seconds:02d}] {text}")
