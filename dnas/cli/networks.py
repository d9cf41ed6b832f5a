"""``dnas export``, ``dnas benchmark`` and ``dnas networks``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from dnas.cli.common import (
    JsonOption,
    NetworkSetOption,
    RatesOption,
    note,
    parse_size,
    print_json,
    wants_rounded,
)
from dnas.errors import UserError

if TYPE_CHECKING:
    from dnas.workflows.networks import LoadedNetwork

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of dnas retrain.")]
SizeOption = Annotated[
    str | None, typer.Option("--size", metavar="HxW", help="Input size; default: that of the network.")
]


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    file_format: Annotated[str, typer.Option("--format", help="onnx, torch or tensorrt.")] = "onnx",
    size: SizeOption = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32 or fp16.")] = "fp32",
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Allow any batch size (not for tensorrt).")
    ] = False,
) -> None:
    """Export a retrained network for a runtime, and compare its outputs with PyTorch."""
    from dnas import export as exporting

    loaded = _load_run(run)
    assert loaded.labels is not None
    assert loaded.augmentation is not None
    if precision not in ("fp32", "fp16"):
        raise UserError(f"precision {precision!r}: expected fp32 or fp16")
    chosen = cast("Literal['fp32', 'fp16']", precision)
    input_size = parse_size(size) or loaded.input_size or (0, 0)
    names, mean, std = loaded.labels.names, loaded.augmentation.mean, loaded.augmentation.std
    if file_format in ("onnx", "torch"):
        write = exporting.export_onnx if file_format == "onnx" else exporting.export_torch
        parity = write(
            loaded.network,
            out,
            input_size,
            dynamic_batch=dynamic_batch,
            class_names=names,
            mean=mean,
            std=std,
            precision=chosen,
        )
    elif file_format == "tensorrt":
        if dynamic_batch:
            raise UserError("--dynamic-batch is for onnx and torch; a TensorRT engine has a fixed batch size")
        parity = exporting.export_tensorrt(
            loaded.network, out, input_size, class_names=names, mean=mean, std=std, precision=chosen
        )
    else:
        raise UserError(f"format {file_format!r}: expected onnx, torch or tensorrt")
    note(
        f"{out}: {file_format}, {input_size[0]}x{input_size[1]}; differs from PyTorch by at most "
        f"{parity.max_abs_difference:.2g}, {100 * parity.equal_argmax:.2f} % of the pixels agree"
    )


def benchmark(
    network: Annotated[
        str, typer.Argument(metavar="NETWORK|RUN|FILE", help="A name, run, .yaml, .onnx, .pt2 or .engine.")
    ],
    size: SizeOption = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            help="eager, compiled, cudagraph, onnxruntime, openvino or tensorrt; "
            "default: cudagraph on CUDA, else eager.",
        ),
    ] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, tf32, fp16 or bf16.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads.")] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, max=65535, help="Classes of an untrained network.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="Approximate time of measuring.")] = 3.0,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load a TensorRT engine, which contains code that cannot be inspected.")
    ] = False,
    rates: RatesOption = "searched",
    network_settings: NetworkSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure latency, frames per second, parameters, multiply-adds and peak memory."""
    from dnas.config import apply_overrides
    from dnas.export import benchmark as measure
    from dnas.workflows.networks import load_network

    chosen = apply_overrides({}, network_settings or [])
    wanted = parse_size(size)
    options = {"device": device, "backend": backend, "precision": precision, "threads": threads, "seconds": seconds}
    options["trust"] = trust
    if network.endswith((".onnx", ".pt2", ".engine", ".plan")):
        result = measure(network, wanted, **options)  # type: ignore[arg-type]
    else:
        loaded = load_network(network, classes, rounded=wants_rounded(rates), options=chosen)
        input_size = wanted or loaded.input_size
        if input_size is None:
            raise UserError(f"{network}: give the input size, --size HEIGHTxWIDTH")
        result = measure(loaded.network, input_size, **options)  # type: ignore[arg-type]
    if as_json:
        print_json(result)
        return
    latency = result["latency_ms"]
    height, width = result["input_size"]
    print(f"{network} at {height}x{width} on {result['device']}, {result['backend']}, {result['precision']}")
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


def _load_run(run: Path) -> LoadedNetwork:
    from dnas.workflows.networks import load_network

    if not run.is_dir():
        raise UserError(f"{run}: no such folder, expected a run folder of dnas retrain")
    return load_network(str(run))
