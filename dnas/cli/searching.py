"""``dnas search``, ``dnas retrain`` and ``dnas report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dnas.cli.common import (
    DataOption,
    DataSetOption,
    DeviceOption,
    OtherEnvironmentOption,
    ResumeOption,
    SeedOption,
    SetOption,
    SpaceArgument,
    TensorBoardOption,
    find_table,
    note,
)
from dnas.errors import UserError

RunOption = Annotated[Path, typer.Option("--out", help="The run folder to write.")]


def search(
    space: SpaceArgument,
    data: DataOption,
    out: RunOption,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            parser=find_table,
            help="Latency table of the target device, file or bundled name; optional for a search of dilation rates.",
        ),
    ] = None,
    resume: ResumeOption = False,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    settings: SetOption = None,
    data_settings: DataSetOption = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Accept a table of another device or input size.")
    ] = False,
    tensorboard: TensorBoardOption = False,
    other_environment: OtherEnvironmentOption = False,
) -> None:
    """Search for architectures in SPACE on images, with the latencies of a table."""
    from dnas.data import load_data_config
    from dnas.latency import LatencyTable
    from dnas.progress import RichProgress
    from dnas.training import end_processes
    from dnas.workflows.derivation import deriver_of_run
    from dnas.workflows.search import run_search
    from search_spaces import load_space

    chosen = load_space(space, settings or [])
    latencies = None if table is None else LatencyTable.load(table)
    images = load_data_config(data, data_settings or [])
    with RichProgress() as progress:
        result = run_search(
            chosen,
            images,
            latencies,
            out,
            seed=seed,
            resume=resume,
            device=device,
            allow_mismatch=allow_mismatch,
            tensorboard=tensorboard,
            other_environment=other_environment,
            progress=progress,
        )
    end_processes()
    scores = ", ".join(f"{name} mIoU {100 * miou:.1f} %" for name, miou in result.miou.items())
    run, deriver = deriver_of_run(out)
    for line in deriver.search_summary(run):
        note(line)
    note(f"{out}: searched {result.epochs} epochs; {scores}. Next: dnas derive {out} --out architecture.yaml")


def retrain(
    network: Annotated[str, typer.Argument(metavar="ARCHITECTURE", help="architecture.yaml, or a network's name.")],
    data: DataOption,
    out: RunOption,
    teacher: Annotated[str | None, typer.Option("--teacher", help="Run of the teacher for distillation.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", metavar="SPACE", help="Space with the training settings; default: the searched space."
        ),
    ] = None,
    network_settings: Annotated[
        list[str] | None,
        typer.Option("--network-set", metavar="KEY=VALUE", help="Option of a network given by its name; repeatable."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Allow options of the network to download pretrained weights.")
    ] = False,
    inherit: Annotated[
        bool | None,
        typer.Option(
            "--inherit/--scratch",
            help="Begin from the weights of the search, or from random ones; default: the recipe's choice.",
        ),
    ] = None,
    search_run: Annotated[
        Path | None,
        typer.Option("--search", help="Run of the search to inherit from; default: the one in the architecture file."),
    ] = None,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Allow data with another number of classes than it was searched for.")
    ] = False,
    resume: ResumeOption = False,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    settings: SetOption = None,
    data_settings: DataSetOption = None,
    tensorboard: TensorBoardOption = False,
    other_environment: OtherEnvironmentOption = False,
) -> None:
    """Train a derived (or published) network, with distillation if a teacher is given."""
    from derive import Architecture
    from dnas.config import apply_overrides, parse_config, to_mapping
    from dnas.data import load_data_config
    from dnas.networks import network_names
    from dnas.progress import RichProgress
    from dnas.training import RetrainConfig, end_processes
    from dnas.workflows.networks import load_network
    from dnas.workflows.retraining import run_retraining

    classes, space, searched = None, recipe, search_run
    description: dict[str, object]
    if Path(network).is_file() or network.endswith((".yaml", ".yml")):
        architecture = Architecture.load(network)
        description = {"architecture": to_mapping(architecture)}
        classes = architecture.num_classes
        space = recipe or architecture.provenance.get("space")
        searched = search_run or Path(architecture.provenance.get("run", ""))
    elif network in network_names():
        options = apply_overrides({}, network_settings or [])
        description = {"name": network, **({"options": options} if options else {})}
    else:
        raise UserError(
            f"{network}: neither an architecture file nor a known network; networks: {', '.join(network_names())}"
        )
    if network_settings and "name" not in description:
        raise UserError(f"--network-set {network_settings[0]}: {network} is an architecture file, which has no options")
    values = apply_overrides(_recipe(space, required=recipe is not None), settings or [])
    config = parse_config(RetrainConfig, values, f"{network}: retrain")
    images = load_data_config(data, data_settings or [])
    loaded_teacher = None if teacher is None else load_network(teacher)
    if loaded_teacher is not None and loaded_teacher.run is None:
        raise UserError(f"{teacher}: expected the run folder of a retrained teacher")
    with RichProgress() as progress:
        result = run_retraining(
            description,
            images,
            out,
            config,
            source=network,
            num_classes=classes,
            transfer=transfer,
            teacher=loaded_teacher,
            inherit=_inherited(network, searched, inherit, config.inherit),
            download=download,
            seed=seed,
            resume=resume,
            device=device,
            tensorboard=tensorboard,
            other_environment=other_environment,
            progress=progress,
        )
    end_processes()
    note(f"{out}: best mIoU {100 * result.best_miou:.2f} % after epoch {result.best_epoch + 1} of {result.epochs}")


def _inherited(network: str, searched: Path | None, wanted: bool | None, by_recipe: bool) -> Path | None:
    """The run folder of the search to inherit weights from, if any."""
    if not (by_recipe if wanted is None else wanted):
        return None
    found = searched is not None and (searched / "state.pt").is_file()
    if found:
        return searched
    if wanted:
        raise UserError(
            f"{network}: --inherit needs the run folder of its search, {searched} is none; give --search RUN"
        )
    note(f"{network}: trained from scratch, as the run folder of its search is not there")
    return None


def _recipe(space: str | None, required: bool) -> dict[str, object]:
    """The training settings of ``space``; if it is not found and not required, the defaults."""
    from dnas.config import to_mapping
    from dnas.training import RetrainConfig
    from search_spaces import load_space, preset_names

    if space and (required or space in preset_names() or Path(space).is_file()):
        return to_mapping(load_space(space).retrain)
    note("retrain: default training settings; choose others with --recipe SPACE or --set KEY=VALUE")
    return to_mapping(RetrainConfig())


def report(
    out: Annotated[Path, typer.Option("--out", help="The HTML page to write.")],
    search_run: Annotated[Path | None, typer.Option("--search", help="Run of dnas search.")] = None,
    student: Annotated[Path | None, typer.Option("--student", help="Run of the retrained student.")] = None,
    teacher: Annotated[Path | None, typer.Option("--teacher", help="Run of the retrained teacher.")] = None,
    networks: Annotated[int, typer.Option("--networks", min=0, help="Networks of the latency check; 0: none.")] = 12,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Number of example images.")] = 4,
    ground_truth: Annotated[
        Path | None,
        typer.Option(
            "--ground-truth",
            metavar="ROWS.jsonl",
            help="Networks of known mIoU, as JSON lines: how well the weights of the search rank them.",
        ),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Also write the figures as PNG to this folder.")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a search and its retrained networks."""
    from dnas.progress import RichProgress
    from dnas.report import write_report
    from dnas.workflows.report import gather_report, write_pictures

    with RichProgress() as progress:
        data = gather_report(
            search_run,
            student,
            teacher,
            networks=networks,
            examples=examples,
            ground_truth=ground_truth,
            progress=progress,
        )
    write_report(out, data)
    if pictures is not None:
        write_pictures(data, pictures, search_run, (student, teacher))
    note(f"{out}: written")
