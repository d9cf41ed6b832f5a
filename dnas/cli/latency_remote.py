"""``dnas latency bundle`` and ``dnas latency collect``: latencies of a device that is not this machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dnas.cli.common import SetOption, SpaceArgument, note

OnOption = Annotated[
    str | None,
    typer.Option("--on", metavar="ssh://HOST", help="Send the bundle there, run it, and make the table."),
]
PythonOption = Annotated[str, typer.Option("--python", help="Python on the host, with what run.py needs.")]
SshOption = Annotated[str, typer.Option("--ssh", metavar="COMMAND", help="ssh with options, such as 'ssh -i KEY'.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads on the host.")]
ProviderOption = Annotated[str | None, typer.Option("--provider", help="Execution provider on the host.")]


def bundle(
    space: SpaceArgument,
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    file_format: Annotated[
        str, typer.Option("--format", help="onnx, or tflite, which needs the extra dnas[tflite].")
    ] = "onnx",
    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16 or int8; tflite: fp32.")] = "fp32",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per call.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds over all entries.")] = 5,
    time_per_entry: Annotated[
        float, typer.Option("--time-per-entry", min=0.001, help="Seconds of timing per entry.")
    ] = 0.2,
    on: OnOption = None,
    python: PythonOption = "python3",
    ssh: SshOption = "ssh",
    threads: ThreadsOption = None,
    provider: ProviderOption = None,
    settings: SetOption = None,
) -> None:
    """Write every operator of SPACE as ONNX or TFLite, with programs that measure them on another device."""
    from dnas.latency import Effort
    from dnas.latency.remote import write_bundle
    from dnas.progress import RichProgress
    from search_spaces import load_space

    chosen = load_space(space, settings or [])
    words = ["dnas", "latency", "bundle", space, "--out", str(out), "--precision", precision, "--batch", str(batch)]
    words += ["--format", file_format] if file_format != "onnx" else []
    words += [word for setting in settings or [] for word in ("--set", setting)]
    if on is None or not (out / "manifest.json").exists():
        with RichProgress() as progress:
            write_bundle(
                chosen.inventory(),
                out,
                space=chosen.name,
                input_size=chosen.input_size,
                file_format=file_format,
                precision=precision,
                batch=batch,
                effort=Effort(rounds=rounds, time_per_entry=time_per_entry),
                command=shlex.join(words),
                progress=progress,
            )
    if on is not None:
        collect(out, out / "table.json", on, python, ssh, threads, provider)
        return
    shell = "benchmark_model" if file_format == "tflite" else "trtexec"
    note(f"{out}: copy this folder to the device, run python3 run.py in it (or sh run.sh for {shell}), copy it back,")
    note(f"and then: dnas latency collect {out} --out table.json")


def collect(
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="A bundle that was measured on the device.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The table to write; default: table.json in the bundle.")
    ] = None,
    on: OnOption = None,
    python: PythonOption = "python3",
    ssh: SshOption = "ssh",
    threads: ThreadsOption = None,
    provider: ProviderOption = None,
) -> None:
    """Turn the results of a bundle into a latency table, with --on after measuring it on a host."""
    from dnas.latency.remote import Host, measure_on_host
    from dnas.latency.remote import collect as collect_table
    from dnas.progress import RichProgress

    if on is not None:
        host = Host.parse(on, python=python, ssh=ssh)
        arguments = ["--threads", str(threads)] if threads is not None else []
        arguments += ["--provider", provider] if provider is not None else []
        with RichProgress() as progress:
            measure_on_host(bundle, host, arguments=arguments, progress=progress)
    out = out or bundle / "table.json"
    table = collect_table(bundle, out)
    summary = table.summary()
    note(f"{out}: {len(table)} operators of {table.provenance.space} on {summary['device']}")
    if doubt := table.doubt():
        note(doubt)
