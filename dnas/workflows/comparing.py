"""Latency and mIoU of several networks and files side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnas.data import SegmentationDataset
from dnas.errors import UserError
from dnas.export import benchmark, is_exported_file
from dnas.progress import NoProgress, Progress
from dnas.workflows.evaluating import file_device, open_scored
from dnas.workflows.networks import load_network


def measure_artefact(
    reference: str,
    *,
    size: tuple[int, int] | None = None,
    dataset: SegmentationDataset | None = None,
    indices: Sequence[int] | None = None,
    classes: int | None = None,
    network_options: Mapping[str, Any] | None = None,
    rounded: bool = False,
    device: str = "cpu",
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    batch: int = 1,
    seconds: float = 3.0,
    trust: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What :func:`dnas.export.benchmark` says about a network, run or file, with ``name`` and the size of the file.

    With ``dataset`` also ``miou`` and ``images``, on its images ``indices`` or all: of the same file in its runtime,
    or of the PyTorch network of a run. Raises :class:`UserError` for a network without trained weights then.
    """
    from_file = is_exported_file(reference)
    network: Any = Path(reference)
    input_size = size
    if not from_file:
        loaded = load_network(reference, classes, rounded=rounded, options=network_options)
        network, input_size = loaded.network, size or loaded.input_size
        if input_size is None:
            raise UserError(f"{reference}: give the input size, --size HEIGHTxWIDTH")
    found = benchmark(
        network,
        input_size,
        device=file_device(reference, device) if from_file else device,
        backend=backend,
        precision=precision,
        threads=threads,
        batch=batch,
        seconds=seconds,
        trust=trust,
    )
    if from_file:
        found["file_mb"] = Path(reference).stat().st_size / 1e6
    if dataset is not None:
        scored = open_scored(
            reference,
            dataset,
            size=size,
            device=device,
            backend=backend if from_file else None,
            threads=threads,
            rounded=rounded,
            trust=trust,
        )
        (progress or NoProgress()).begin(f"{reference}: evaluating {len(dataset)} images", len(dataset))
        scores = scored.evaluate(indices=indices, progress=progress)
        found |= {"miou": scores.miou, "images": scores.images}
    return {"name": reference, **found}


def table_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The artefacts as a table for people: precision, mIoU, latency, frames a second, size of the file."""
    width = max(len(row["name"]) for row in rows)
    head = f"{'runtime':<12} {'precision':<9} {'size':>9} {'mIoU':>8} {'latency':>11} {'FPS':>8} {'MB':>7}"
    yield f"{'':<{width}}  {head}"
    for row in rows:
        miou = f"{100 * row['miou']:.2f} %" if row.get("miou") is not None else "-"
        size = "x".join(map(str, row["input_size"]))
        megabytes = f"{row['file_mb']:.2f}" if row.get("file_mb") is not None else "-"
        yield (
            f"{row['name']:<{width}}  {row['backend']:<12} {row['precision']:<9} {size:>9} {miou:>8} "
            f"{row['latency_ms']['median']:>8.3f} ms {row['fps']:>8.1f} {megabytes:>7}"
        )
