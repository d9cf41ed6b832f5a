"""Run a table of a paper: train, evaluate and measure its networks, and print it beside the paper's figures.

    python -m scripts.papers                                     the tables
    python -m scripts.papers NAME --root DATA --out DIR          run it; the same call continues an interrupted one
    python -m scripts.papers NAME --toy --out DIR                a few generated images, one row: to see that it works

``--against COLUMN --figure FILE`` also draws the mIoU over that column, as the papers' first figures do.

What each needs, and what was reproduced, is in docs/PAPERS.md. Rows go to DIR/results.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from dnas.errors import UserError
from dnas.report import save_figure
from scripts.papers.config import Column, Table, load_table, table_names
from scripts.papers.figure import against
from scripts.papers.run import Experiment, markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the table; the exit status is 2 for a user error, which is printed in one line."""
    options = _parser().parse_args(arguments)
    try:
        if options.name is None:
            for name in table_names():
                table = load_table(name)
                print(f"{name:<28} {table.paper}: {table.title}")
            return 0
        _run(load_table(options.name), options)
    except UserError as error:
        print(f"papers: {error}", file=sys.stderr)
        return 2
    return 0


def _run(table: Table, options: argparse.Namespace) -> None:
    if options.out is None:
        raise UserError("give --out, the folder of the results")
    labels = options.rows or list(table.rows)[: 1 if options.toy else None]
    if unknown := [label for label in labels if label not in table.rows]:
        raise UserError(f"row {unknown[0]!r}: expected some of {', '.join(table.rows)}")
    data = table.open_data(options.root, options.data_set, toy=options.toy) if table.trains else None
    before = table.open_data_before(labels, options.before_root, toy=options.toy) if table.trains else None
    experiment = Experiment(
        table,
        options.out,
        data,
        before,
        device=options.device,
        precision=options.precision,
        toy=options.toy,
        changes=tuple(options.set),
    )
    experiment.run(labels, options.seeds or (1 if options.toy else table.seeds))
    print("\n".join(markdown(table, experiment.results())))
    if options.figure is not None:
        save_figure(against(table, experiment.results(), options.against), options.figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts.papers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", nargs="?", metavar="NAME")
    parser.add_argument("--root", help="folder of the data's files")
    parser.add_argument("--before-root", help="folder of the data of trainings that give others their first weights")
    parser.add_argument("--out", type=Path, help="folder of the results and the runs")
    parser.add_argument("--rows", nargs="+", default=[], metavar="LABEL", help="some rows; default: all")
    parser.add_argument("--seeds", type=int, help="trainings of each row; default: as many as the paper")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32", help="of the speed: fp32, fp16 or bf16")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change all recipes")
    parser.add_argument("--data-set", action="append", default=[], metavar="KEY=VALUE", help="change the data")
    parser.add_argument("--against", choices=get_args(Column), default="parameters", help="of the figure")
    parser.add_argument("--figure", type=Path, help="the mIoU over --against, as SVG or PNG")
    parser.add_argument("--toy", action="store_true", help="one row on a few generated images")
    return parser


if __name__ == "__main__":
    sys.exit(main())
