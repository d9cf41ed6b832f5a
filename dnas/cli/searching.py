"""``dnas search``, ``dnas retrain`` and ``dnas report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dnas.cli.common import (
    CheckOption,
    DataOption,
    DataSetOption,
    DeterministicOption,
    DeviceOption,
    NetworkSetOption,
    OtherEnvironmentOption,
    ResumeOption,
    SeedOption,
    SetOption,
    SpaceArgument,
    TensorBoardOption,
    find_table,
    note,
    parse_check,
)
from dnas.errors import UserError

RunOption = Annotated[Path, typer.Option("--out", help="The run folder to write.")]


def _list_recipes(value: str | None) -> str | None:
    """Print the papers' recipes for ``--recipe list`` and exit."""
    if value != "list":
        return value
    from dnas.workflows.recipes import recipe_lines

    for line in recipe_lines():
        print(line)
    raise typer.Exit


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
    deterministic: DeterministicOption = False,
    seed: SeedOption = 0,
    settings: SetOption = None,
    data_settings: DataSetOption = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Accept a table of another device or input size.")
    ] = False,
    tensorboard: TensorBoardOption = False,
    other_environment: OtherEnvironmentOption = False,
    check: CheckOption = "sample",
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
            deterministic=deterministic,
            allow_mismatch=allow_mismatch,
            tensorboard=tensorboard,
            other_environment=other_environment,
            progress=progress,
            check=parse_check(check),
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
            "--recipe",
            metavar="NAME",
            callback=_list_recipes,
            is_eager=True,
            help="Training settings: a paper's recipe (list prints them) or a search space; default: the recipe of the "
            "network's paper for this data, or that of the searched space.",
        ),
    ] = None,
    network_settings: NetworkSetOption = None,
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
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="RUN|FILE|timm|torchvision",
            help="Begin from the weights of a run, of a file, or from a library's for the network; class layers may "
            "differ.",
        ),
    ] = None,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Allow data with another number of classes than it was searched for.")
    ] = False,
    resume: ResumeOption = False,
    device: DeviceOption = "auto",
    deterministic: DeterministicOption = False,
    seed: SeedOption = 0,
    settings: SetOption = None,
    data_settings: DataSetOption = None,
    tensorboard: TensorBoardOption = False,
    other_environment: OtherEnvironmentOption = False,
    check: CheckOption = "sample",
) -> None:
    """Train a derived (or published) network, with distillation if a teacher is given."""
    from derive import Architecture
    from dnas.config import apply_overrides, parse_config, to_mapping
    from dnas.data import load_data_config
    from dnas.networks import is_network_name, network_names
    from dnas.progress import RichProgress
    from dnas.training import RetrainConfig, end_processes
    from dnas.workflows.networks import load_network
    from dnas.workflows.recipes import find_recipe
    from dnas.workflows.retraining import run_retraining

    classes, space, searched = None, None, search_run
    description: dict[str, object]
    if Path(network).is_file() or network.endswith((".yaml", ".yml")):
        architecture = Architecture.load(network)
        description = {"architecture": to_mapping(architecture)}
        classes = architecture.num_classes
        space = architecture.provenance.get("space")
        searched = search_run or Path(architecture.provenance.get("run", ""))
    elif is_network_name(network):
        options = apply_overrides({}, network_settings or [])
        description = {"name": network, **({"options": options} if options else {})}
    else:
        raise UserError(
            f"{network}: neither an architecture file nor a known network; networks: {', '.join(network_names())}"
        )
    if network_settings and "name" not in description:
        raise UserError(f"--network-set {network_settings[0]}: {network} is an architecture file, which has no options")
    images = load_data_config(data, data_settings or [])
    name = network if "name" in description else None
    found = find_recipe(recipe, network=name, data=images.dataset, space=space)
    for line in found.notes:
        note(line)
    config = parse_config(RetrainConfig, apply_overrides(found.settings, settings or []), f"{network}: retrain")
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
            init=init,
            seed=seed,
            resume=resume,
            device=device,
            deterministic=deterministic,
            tensorboard=tensorboard,
            other_environment=other_environment,
            progress=progress,
            check=parse_check(check),
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


def report(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR...]", help="Studies or runs to compare on one page.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The HTML page to write; default: report.html in the only DIR.")
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="NAME", help="Varied value that gets a Pareto front for each value.")
    ] = None,
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
    """Write one self-contained HTML page: about a search and its networks, or a comparison of studies and runs."""
    from dnas.progress import RichProgress
    from dnas.report import write_report
    from dnas.workflows.comparison import gather_comparison
    from dnas.workflows.report import gather_report, write_pictures

    if folders:
        if any((search_run, student, teacher, ground_truth, pictures)):
            raise UserError("report: give either folders to compare, or --search, --student and --teacher")
        page = out or (folders[0] / "report.html" if len(folders) == 1 else None)
        if page is None:
            raise UserError("report: several folders need --out, the HTML page to write")
        write_report(page, gather_comparison(folders, by=by))
        note(f"{page}: written")
        return
    if out is None:
        raise UserError("report: give --out, the HTML page to write, or the folder of a study")
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
