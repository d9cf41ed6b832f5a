"""``dnas latency predict``: a table of a new device from few measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnas.cli.common import SetOption, SpaceArgument, find_table, note
from dnas.errors import UserError

if TYPE_CHECKING:
    from dnas.latency import InventoryItem, LatencyTable


def predict(
    space: SpaceArgument,
    out: Annotated[Path, typer.Option("--out", help="The table to write.")],
    like: Annotated[
        list[Path], typer.Option("--like", metavar="T.json", parser=find_table, help="Another device's; repeatable.")
    ],
    share: Annotated[float, typer.Option("--share", min=0.01, max=1, help="Share of the entries to measure.")] = 0.1,
    largest_error: Annotated[
        float, typer.Option("--largest-error", min=0.1, help="Largest error in percent on entries left out.")
    ] = 5.0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = "cpu",
    backend: Annotated[
        str, typer.Option("--backend", help="eager, compiled, cudagraph, onnxruntime, openvino or tensorrt.")
    ] = "eager",
    precision: Annotated[str, typer.Option("--precision", help="fp32, tf32, fp16 or bf16.")] = "fp32",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; default: torch's.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds over all entries.")] = 5,
    time_per_entry: Annotated[
        float, typer.Option("--time-per-entry", min=0.001, help="Seconds of timing per entry.")
    ] = 0.2,
    settings: SetOption = None,
) -> None:
    """Measure a share of SPACE's operators here, and predict the others from tables of other devices.

    The table is refused if entries that were measured but left out are not predicted well.
    """
    from dnas.device import resolve_device
    from dnas.latency import Effort, LatencyTable, build_table, make_setup
    from dnas.progress import RichProgress
    from dnas.workflows.prediction import predict_table
    from search_spaces import load_space

    if out.exists():
        raise UserError(f"{out}: exists already; give another --out, or remove it")
    chosen = load_space(space, settings or [])
    setup = make_setup(resolve_device(device, mps=True), backend=backend, precision=precision, threads=threads)
    effort = Effort(rounds=rounds, time_per_entry=time_per_entry)
    with RichProgress() as progress:

        def measure(items: Sequence[InventoryItem], path: Path) -> LatencyTable:
            return build_table(
                items,
                path,
                setup,
                space=chosen.name,
                input_size=chosen.input_size,
                effort=effort,
                resume=True,
                progress=progress,
            )

        others = [LatencyTable.load(path) for path in like]
        table, found = predict_table(chosen, others, out, measure, share=share, largest_error=largest_error / 100)
    note(
        f"{out}: {len(table)} entries, {len(table) - len(found.latencies)} measured, the others predicted "
        f"({found.method}); error on entries left out {100 * found.error:.1f} %"
    )
