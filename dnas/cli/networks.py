"""``dnas benchmark`` and ``dnas networks``, and what commands on trained networks share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dnas.cli.common import (
    DataSetOption,
    JsonOption,
    NetworkSetOption,
    RatesOption,
    parse_size,
    print_json,
    wants_rounded,
)
from dnas.errors import UserError

if TYPE_CHECKING:
    from dnas.workflows.networks import LoadedNetwork

BackendOption = Annotated[
    str | None,
    typer.Option("--backend", help="eager, compiled, cudagraph, onnxruntime, openvino or tensorrt."),
]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Load a TensorRT engine, which contains code that cannot be inspected.")
]
SizeOption = Annotated[
    str | None, typer.Option("--size", metavar="HxW", help="Input size; default: that of the network.")
]


def benchmark(
    networks: Annotated[
        list[str], typer.Argument(metavar="NETWORK|RUN|FILE...", help="Names, runs, .yaml, .onnx, .pt2 or .engine.")
    ],
    size: SizeOption = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per call.")] = 1,
    data: Annotated[
        str | None, typer.Option("--data", help="Also evaluate on these images, so that mIoU and latency are together.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "val",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    backend: BackendOption = None,
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, tf32, fp16, bf16 or int8.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads.")] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, max=65535, help="Classes of an untrained network.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="Approximate time of measuring.")] = 3.0,
    data_settings: DataSetOption = None,
    trust: TrustOption = False,
    rates: RatesOption = "searched",
    network_settings: NetworkSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure latency, frames per second, parameters, multiply-adds and peak memory; of several, a table."""
    from dnas.config import apply_overrides
    from dnas.data import load_data_config, open_dataset
    from dnas.progress import RichProgress
    from dnas.workflows.comparing import measure_artefact, table_lines

    dataset = None if data is None else open_dataset(load_data_config(data, data_settings or []), split)
    with RichProgress() as progress:
        rows = [
            measure_artefact(
                network,
                size=parse_size(size),
                dataset=dataset,
                classes=classes,
                network_options=apply_overrides({}, network_settings or []),
                rounded=wants_rounded(rates),
                device=device,
                backend=backend,
                precision=precision,
                threads=threads,
                batch=batch,
                seconds=seconds,
                trust=trust,
                progress=progress,
            )
            for network in networks
        ]
    if as_json:
        print_json(rows[0] if len(rows) == 1 else {"rows": rows})
    elif len(rows) == 1:
        _print_benchmark(networks[0], rows[0])
    else:
        for line in table_lines(rows):
            print(line)


def _print_benchmark(network: str, result: dict[str, Any]) -> None:
    latency = result["latency_ms"]
    height, width = result["input_size"]
    print(f"{network} at {height}x{width} on {result['device']}, {result['backend']}, {result['precision']}")
    if result.get("miou") is not None:
        print(f"  mIoU           {100 * result['miou']:.2f} % on {result['images']} images")
    print(f"  latency        {latency['median']:.3f} ms (10 % {latency['p10']:.3f}, 90 % {latency['p90']:.3f})")
    print(f"  frames         {result['fps']:.1f} a second")
    for key, unit, name in (("parameters", 1e6, "M"), ("multiply_adds", 1e9, "G")):
        value = result[key]
        print(f"  {key.replace('_', '-'):<14} {'unknown' if value is None else f'{value / unit:.3f} {name}'}")
    print(f"  peak memory    {result['peak_memory_mb']:.0f} MB")


def networks(as_json: JsonOption = False) -> None:
    """List the published networks with parameters and multiply-adds at their papers' input size."""
    import torch

    from dnas.networks import create_network, list_networks, network_facts
    from dnas.profile import count_multiply_adds, count_parameters

    rows: list[dict[str, Any]] = []
    for name in list_networks():
        facts = network_facts(name)
        with torch.device("meta"):
            network = create_network(name)
        rows.append(
            {
                "name": name,
                "parameters": count_parameters(network),
                "multiply_adds": count_multiply_adds(network, facts.input_size, elementwise=facts.elementwise),
                "input_size": list(facts.input_size),
                "source": facts.source,
            }
        )
    if as_json:
        print_json(rows)
        return
    print(f"{'name':<20} {'parameters':>11} {'multiply-adds':>14}  input size")
    for row in rows:
        height, width = row["input_size"]
        print(
            f"{row['name']:<20} {row['parameters'] / 1e6:>9.2f} M {row['multiply_adds'] / 1e9:>12.2f} G"
            f"  {height}x{width}"
        )


def load_run(run: Path) -> LoadedNetwork:
    """The network of a run folder; :class:`UserError` for anything else."""
    from dnas.workflows.networks import load_network

    if not run.is_dir():
        raise UserError(f"{run}: no such folder, expected a run folder of dnas retrain")
    return load_network(str(run))
