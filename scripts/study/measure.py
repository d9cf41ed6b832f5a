"""Measure the latency of every network in the results of a study: run it on an idle machine.

    python -m scripts.study.measure camvid [--results docs/study]

Fills ``measured_ms`` in the files of rows. All networks are measured in interleaved rounds with the settings of the
study's latency table, so that slow phases of the machine reach all alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from derive import architecture_from
from dnas.latency import Effort, measure_networks
from dnas.networks import network_by_name
from dnas.progress import RichProgress
from dnas.workflows.measuring import setup_of
from scripts.study.config import add_options, load_study
from scripts.study.rows import DERIVED, HAND_MADE, RANDOM, read_rows, replace_rows
from search_spaces import load_space


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="measure networks again that have been measured")
    options = parser.parse_args()
    study = load_study(options.study)
    space = load_space(study.space)
    files = {name: read_rows(options.results / name) for name in (RANDOM, DERIVED, HAND_MADE)}
    mine = [row for rows in files.values() for row in rows if (row["space"], row["data"]) == (study.space, study.data)]
    wanted = {row["network"]: row for row in mine if options.again or row["measured_ms"] is None}
    if not wanted:
        print("every network has been measured")
        return
    table = study.latency_table()
    with RichProgress() as progress:
        found = measure_networks(
            {name: _builder(row, space.num_classes) for name, row in wanted.items()},
            space.input_size,
            setup_of(table, space.input_size),
            effort=Effort(rounds=options.rounds),
            progress=progress,
        )
    for row in mine:
        if row["network"] in found:
            row["measured_ms"] = round(found[row["network"]].median, 6)
    for name, rows in files.items():
        if rows:
            replace_rows(options.results / name, rows)
    ratios = [row["measured_ms"] / row["predicted_ms"] for row in mine if row["predicted_ms"] is not None]
    print(f"{len(found)} networks measured; measured over predicted: {min(ratios):.3f} to {max(ratios):.3f}")


def _builder(row: dict[str, Any], num_classes: int) -> Callable[[], nn.Module]:
    if "description" in row:
        description = row["description"]
        return partial(network_by_name, description["name"], num_classes, description["options"])
    return partial(architecture_from(row["architecture"], row["network"]).build, num_classes)


if __name__ == "__main__":
    main()
