"""FasterSeg's ablation (Table 3) on any dataset: effects of branches, widths, co-search and distillation.

Searches a space three times (one branch at a fixed width, all branches at this width, the full space), retrains the
derived networks, and prints the rows of the paper as a Markdown table: mIoU of the best weights on the validation
images, latency predicted by the table, multiply-adds and parameters. The runs are a study (`dnas study status DIR`,
`dnas report DIR`): finished ones in the folder are reused.

    python scripts/ablation.py SPACE --data DATA --out DIR [--table T.json] [--seed 0] [--set KEY=VALUE ...]

``T -> pruned T`` is the teacher's architecture at the smallest ratio, with the student's stem and head (the paper does
not specify them). Without ``--table`` the operators are measured first, on this machine's CPU with one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from derive import Architecture, DeriveOptions
from derive.base import logits_of
from derive.multi_branch import decode
from dnas.config import parse_config, to_mapping
from dnas.data import DataConfig, load_data_config
from dnas.errors import UserError
from dnas.files import dump_yaml, write_text
from dnas.latency import LatencyTable, build_table, make_setup
from dnas.profile import count_multiply_adds, count_parameters
from dnas.progress import RichProgress
from dnas.runs import RunFolder
from dnas.workflows.derivation import derive_network
from dnas.workflows.study.config import StudyConfig
from dnas.workflows.study.running import run_study
from search_spaces import load_space
from search_spaces.fasterseg import FasterSegSpace


@dataclass(frozen=True)
class Row:
    """One row of the table: the network to train, and the name of its teacher's row."""

    name: str
    label: str
    architecture: Architecture
    teacher: str | None = None


@dataclass(frozen=True)
class Ablation:
    """The search space, the data and the folder of an ablation."""

    preset: str
    overrides: tuple[str, ...]
    data: DataConfig
    out: Path
    seed: int

    def space(self, *overrides: str) -> FasterSegSpace:
        """The space with further overrides."""
        space = load_space(self.preset, [*self.overrides, *overrides])
        if not isinstance(space, FasterSegSpace):
            raise UserError(f"{self.preset}: not a fasterseg space")
        return space

    def spaces(self) -> dict[str, FasterSegSpace]:
        """The full space, and the space at a fixed width with one branch and with all branches."""
        full = self.space()
        # With one width, the passes at the largest and at the smallest width would be equal.
        fixed = (
            f"network.ratios=[{full.end_ratios['student']}]",
            "search.pretrain_passes=[teacher.largest, student.largest]",
            "search.search_passes=[teacher.largest, student.sampled]",
        )
        return {
            "one_branch": self.space(*fixed, "network.branches=1"),
            "fixed_width": self.space(*fixed),
            "full": full,
        }

    def measure(self, given: Path | None) -> LatencyTable:
        """One table for all spaces: the given one, with missing entries measured, or a new one."""
        path = self.out / "table.json"
        items = {item.spec.key: item for space in self.spaces().values() for item in space.inventory()}
        if given is not None and not path.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given, path)
        if path.exists() and not LatencyTable.load(path).missing([item.spec for item in items.values()]):
            return LatencyTable.load(path)
        space = self.space()
        setup = make_setup("cpu", threads=1)
        return build_table(
            list(items.values()), path, setup, space=space.name, input_size=space.input_size, resume=path.exists()
        )

    def study(self, rows: Sequence[Row] = ()) -> StudyConfig:
        """The searches as a study, and the trainings of ``rows``."""
        common = {"data": "$study/data.yaml", "seed": self.seed}
        jobs: dict[str, Any] = {}
        for name in self.spaces():
            options = {**common, "table": "$study/table.json"}
            jobs[f"search_{name}"] = {"command": f"search $study/{name}.yaml", "options": options}
        for row in rows:
            teacher = {} if row.teacher is None else {"teacher": f"${row.teacher}"}
            options = {**common, "recipe": "$study/full.yaml", **teacher}
            jobs[row.name] = {"command": f"retrain $study/{row.name}_network.yaml", "options": options}
        return parse_config(StudyConfig, {"jobs": jobs}, "study")

    def run(self) -> list[Row]:
        """Search, derive and train, as many runs at a time as the machine has cores or GPUs."""
        write_text(self.out / "data.yaml", dump_yaml(to_mapping(self.data)))
        for name, space in self.spaces().items():
            write_text(self.out / f"{name}.yaml", dump_yaml(space.configuration()))
        with RichProgress() as progress:
            run_study(self.study(), self.out, progress=progress)
            rows = list(self.rows())
            for row in rows:
                row.architecture.save(self.out / f"{row.name}_network.yaml")
            run_study(self.study(rows), self.out, progress=progress)
        return rows

    def rows(self) -> Iterator[Row]:
        """The networks to train, derived from the searches, teachers before their students."""
        spaces = self.spaces()
        found = {name: self.derived(name) for name in spaces}
        width = spaces["full"].end_ratios["student"]
        teacher = self.derived("full", "teacher")
        pruned = self.pruned(spaces["full"], [part["scale"] for part in teacher.summary()])
        yield Row("one_branch", f"O, s at ratio {width}, b = 1", found["one_branch"])
        branches = spaces["fixed_width"].settings.network.branches
        yield Row("fixed_width", f"O, s at ratio {width}, b = {branches}", found["fixed_width"])
        yield Row("teacher", "T", teacher)
        yield Row("student", "S: O, s, ratios", found["full"])
        yield Row("pruned_teacher", "T -> pruned T", pruned, "teacher")
        yield Row("distilled", "T -> S", found["full"], "teacher")

    def derived(self, name: str, which: str = "student") -> Architecture:
        """The network derived from one of the searches."""
        return derive_network(self.out / "jobs" / f"search_{name}", DeriveOptions(which=which)).architecture

    def pruned(self, space: FasterSegSpace, branches: Sequence[int]) -> Architecture:
        """The teacher with the smallest ratio in all cells."""
        logits = RunFolder.open(self.out / "jobs" / "search_full", "search").load_weights("architecture")
        plan = space.plan()
        smallest = dataclasses.replace(plan, ratios=plan.ratios[:1])
        return decode(logits_of(logits, "teacher"), smallest, branches)

    def miou(self, row: Row) -> float:
        """The best mIoU of a row's network on the validation images."""
        epochs = RunFolder.open(self.out / "jobs" / row.name, "retrain").records("epoch")
        return max(record["miou"] for record in epochs if record.get("miou") is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("space", help="preset or YAML file of a fasterseg space")
    parser.add_argument("--data", required=True, help="dataset, such as streets or camvid:DIR")
    parser.add_argument("--data-set", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--table", type=Path, help="latency table of the space")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="settings")
    options = parser.parse_args()
    data = load_data_config(options.data, options.data_set)
    ablation = Ablation(options.space, tuple(options.settings), data, options.out, options.seed)
    table = ablation.measure(options.table)
    space = ablation.space()
    lines = ["| setting | mIoU (%) | latency (ms) | multiply-adds (G) | parameters (M) |", "|---|---|---|---|---|"]
    for row in ablation.run():
        miou = ablation.miou(row)
        network = row.architecture.build(space.num_classes).eval()
        latency = sum(map(table.lookup, row.architecture.signatures(space.num_classes, space.input_size)))
        operations = count_multiply_adds(network, space.input_size) / 1e9
        parameters = count_parameters(network) / 1e6
        lines.append(f"| {row.label} | {100 * miou:.1f} | {latency:.2f} | {operations:.3f} | {parameters:.3f} |")
        print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
