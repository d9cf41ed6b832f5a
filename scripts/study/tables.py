"""Write the tables and the picture of the study of searches from its rows into docs/RESULTS.md.

    python -m scripts.study.tables [--check]

Each table stands between two comments that name it. ``--check`` writes nothing and fails if a table is not that of the
rows.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnas.report import save_figure
from scripts.markdown import NOTHING, markdown_table, spread, update, with_block
from scripts.study.analysis import (
    Comparison,
    Row,
    compare,
    highest_tau,
    means,
    noise,
    rank_correlation,
    search_seconds,
    within_band,
)
from scripts.study.config import StudyConfig, load_study, study_names
from scripts.study.pareto import pareto
from scripts.study.rates_table import with_rates_tables
from scripts.study.rows import DERIVED, HAND_MADE, LENGTH, RANDOM, RESULTS, RETRAININGS, SUPERNETS, read_rows

DOCUMENT = RESULTS.parent / "RESULTS.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    update(DOCUMENT, lambda text: with_tables(text, RESULTS), "python -m scripts.study.tables", check=options.check)
    if options.check:
        return
    for name in study_names():
        study = load_study(name)
        rows = [_of(study, RESULTS, file) for file in (RANDOM, DERIVED, HAND_MADE)]
        if any(row["measured_ms"] is not None for row in rows[0]):
            save_figure(pareto(*rows), RESULTS.parent / "images" / f"study_{name}.png")


def with_tables(document: str, results: Path) -> str:
    """The document with all tables of the studies and of the comparisons of rates between their comments."""
    for name in study_names():
        study = load_study(name)
        for block, table in TABLES.items():
            mark = f"study {name} {block}"
            if f"<!-- begin: {mark} -->" in document:
                document = with_block(document, mark, table(study, results))
    return with_rates_tables(document, results)


def random_table(study: StudyConfig, results: Path) -> str:
    """The random networks, all of them and around each target, and the noise of a training."""
    rows = _of(study, results, RANDOM)
    if not rows:
        return NOTHING
    networks = means(rows, "val_miou", "test_miou")
    lines = []
    for label, group in [
        ("all", networks),
        *((f"{target:g} ms", within_band(networks, target, study.tolerance)) for target in study.targets_ms),
    ]:
        if len(group) < 2:
            continue
        latency, (val, test) = [row["predicted_ms"] for row in group], (_percent(group, "val"), _percent(group, "test"))
        lines.append(
            (
                label,
                len(group),
                f"{min(latency):.1f} to {max(latency):.1f}",
                *(f"{statistics.mean(x):.1f} ± {statistics.stdev(x):.1f}" for x in (val, test)),
                *(f"{min(x):.1f} to {max(x):.1f}" for x in (val, test)),
                f"{rank_correlation(latency, val)[0]:.2f}",
            )
        )
    header = ("networks", "n", "predicted ms", "val", "test", "val, range", "test, range", "tau of ms and val")
    text = markdown_table(header, lines)
    for split in ("val", "test"):
        found = noise(rows, f"{split}_miou")
        if found.networks:
            text += (
                f"\n\nNoise of a training, {split}: {100 * found.within:.2f} points between the seeds of a network "
                f"({found.networks} networks, {found.trainings} trainings), {100 * found.between:.2f} points between "
                f"networks: {100 * found.reliability:.0f} % of the variance is that of the networks."
            )
    return text


def length_table(study: StudyConfig, results: Path) -> str:
    """How trainings of other lengths, or with another seed, order the same networks."""
    every = [row for row in read_rows(results / LENGTH) if (row["space"], row["data"]) == (study.space, study.data)]
    by_seed = {
        seed: {row["network"]: row for row in _of(study, results, RANDOM) if row["seed"] == seed}
        for seed in range(study.seeds)
    }
    compared = {
        f"{study.recipe.epochs} and {epochs}": [
            _common(by_seed[0], {row["network"]: row for row in every if row["epochs"] == epochs})
        ]
        for epochs in sorted({row["epochs"] for row in every})
    }
    if compared:
        same_length = [_common(by_seed[a], by_seed[b]) for a, b in itertools.combinations(by_seed, 2)]
        compared[f"{study.recipe.epochs}, two seeds"] = same_length
    lines = [_length_line(name, pairs) for name, pairs in compared.items() if all(len(one) > 2 for one in pairs)]
    header = ("epochs", "n", "val, first", "val, second", "tau, val", "tau, test", "tau, mean of both")
    return markdown_table(header, lines) if lines else NOTHING


def _common(first: Mapping[str, Row], second: Mapping[str, Row]) -> list[tuple[Row, Row]]:
    """The rows of the networks that both have."""
    return [(first[network], row) for network, row in second.items() if network in first]


def _length_line(name: str, comparisons: Sequence[Sequence[tuple[Row, Row]]]) -> tuple[Any, ...]:
    """The means over several comparisons of the same networks."""
    scores: tuple[tuple[str, ...], ...] = (("val_miou",), ("test_miou",), ("val_miou", "test_miou"))
    found = []
    for pairs in comparisons:
        sides = list(zip(*pairs, strict=True))
        mean = [statistics.mean(100 * row["val_miou"] for row in side) for side in sides]
        sums = [[[sum(row[key] for key in keys) for row in side] for side in sides] for keys in scores]
        found.append([*mean, *(rank_correlation(*one)[0] for one in sums)])
    first, second, *taus = (statistics.mean(values) for values in zip(*found, strict=True))
    return (name, len(comparisons[0]), f"{first:.1f}", f"{second:.1f}", *taus)


def supernet_table(study: StudyConfig, results: Path) -> str:
    """How well supernets rank the random networks, by how many of these there were then."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in _of(study, results, SUPERNETS):
        if row["setting"] in study.supernets:
            rows.setdefault((row["setting"], row["networks"]), []).append(row)
    if not rows:
        return NOTHING
    lines = _highest_taus(study, results)
    order = list(study.supernets)
    for (name, networks), found in sorted(rows.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        bands = [
            ", ".join(
                spread([row["bands"][f"{ms:g}"][score] for row in found if f"{ms:g}" in row["bands"]])
                for score in ("tau", "rho")
            )
            for ms in study.targets_ms
        ]
        lines.append(
            (
                name,
                found[0]["search"]["epochs"],
                len(found),
                _minutes(search_seconds(found)),
                networks,
                spread([row["tau"] for row in found]),
                spread([row["rho"] for row in found]),
                *bands,
            )
        )
    header = ["setting", "epochs", "seeds", "min of a core", "n", "tau", "rho"]
    header += [f"tau, rho at {target:g} ms" for target in study.targets_ms]
    return markdown_table(header, lines)


def _highest_taus(study: StudyConfig, results: Path) -> list[tuple[Any, ...]]:
    """A line with the highest tau that the noise of the trainings allows, of all networks and in each band.

    None where no network was trained with several seeds, so that the noise is not known.
    """
    rows = [{**row, "miou": (row["val_miou"] + row["test_miou"]) / 2} for row in _of(study, results, RANDOM)]
    count = len(means(rows, "miou"))
    if len(rows) == count:
        return []
    within = noise(rows, "miou").within
    groups = [rows, *(within_band(rows, target, study.band_tolerance) for target in study.targets_ms)]
    first, *bands = ["" if len(group) < 2 else f"{highest_tau(group, within, 'miou'):.2f}" for group in groups]
    return [("highest that noise allows", "", "", "", count, first, "", *bands)]


def derived_table(study: StudyConfig, results: Path) -> str:
    """Derived networks against random ones of the same latency."""
    derived, random = _of(study, results, DERIVED), means(_of(study, results, RANDOM), "val_miou", "test_miou")
    lines = []
    for method in dict.fromkeys(row["method"] for row in derived):
        for target in study.targets_ms:
            mine = [row for row in derived if (row["method"], row["target_ms"]) == (method, target)]
            theirs = within_band(random, target, study.tolerance)
            if mine and len(theirs) > 1:
                scores = [compare(mine, theirs, f"{split}_miou") for split in ("val", "test")]
                minutes = _minutes(search_seconds(mine))
                lines.append((method, f"{target:g}", len(mine), minutes, len(theirs), *_cells(scores)))
    header = ["method", "ms", "seeds", "min of a core", "random"]
    for split in ("val", "test"):
        header += [split, f"random, {split}", "percentile", "difference", "best of"]
    return markdown_table(header, lines) if lines else NOTHING


def spaces_table(study: StudyConfig, results: Path) -> str:
    """Derived networks of the methods side by side; differences are of the first method and another with one seed."""
    rows = _of(study, results, DERIVED)
    methods = [name for name in study.methods if any(row["method"] == name for row in rows)]
    lines = []
    for target in study.targets_ms:
        groups = {
            name: [row for row in rows if (row["method"], row["target_ms"]) == (name, target)] for name in methods
        }
        for name, mine in groups.items():
            if not mine:
                continue
            cells = []
            for split in ("val", "test"):
                first = {row["search_seed"]: row[f"{split}_miou"] for row in groups[methods[0]]}
                gains = [
                    100 * (first[row["search_seed"]] - row[f"{split}_miou"])
                    for row in mine
                    if name != methods[0] and row["search_seed"] in first
                ]
                cells += [spread(_percent(mine, split), ".1f"), spread(gains, "+.1f")]
            lines.append((f"{target:g}", name, len(mine), _minutes(search_seconds(mine)), *cells))
    header = ("ms", "method", "seeds", "min of a core", "val", "first is ahead by", "test", "first is ahead by")
    return markdown_table(header, lines) if lines else NOTHING


def hand_made_table(study: StudyConfig, results: Path) -> str:
    """Hand-made networks under the same recipe."""
    rows = _of(study, results, HAND_MADE)
    lines = []
    for name in study.hand_made:
        mine = [row for row in rows if row["network"] == name]
        if mine:
            ms = mine[0]["measured_ms"]
            lines.append(
                (
                    name,
                    f"{mine[0]['parameters'] / 1e6:.2f}",
                    "" if ms is None else f"{ms:.2f}",
                    len(mine),
                    *(spread(_percent(mine, split), ".1f") for split in ("val", "test")),
                )
            )
    return (
        markdown_table(("network", "parameters (M)", "measured ms", "seeds", "val", "test"), lines)
        if lines
        else NOTHING
    )


def retrainings_table(study: StudyConfig, results: Path) -> str:
    """Ways to train the same derived networks, by the length of the training; differences are to the first way."""
    rows = _of(study, results, RETRAININGS)
    if not rows or study.retrainings is None:
        return NOTHING
    ways = study.retrainings.ways
    first = next(iter(ways))
    base = {(row["epochs"], row["seed"]): row for row in rows if row["way"] == first}
    lines = []
    for name, way in ways.items():
        for epochs in way.epochs:
            mine = [row for row in rows if (row["way"], row["epochs"]) == (name, epochs)]
            pairs = [(row, base[epochs, row["seed"]]) for row in mine if (epochs, row["seed"]) in base]
            if not mine:
                continue
            cells = []
            for split in ("val", "test"):
                gains = [100 * (row[f"{split}_miou"] - other[f"{split}_miou"]) for row, other in pairs]
                difference = "" if name == first else spread(gains, "+.1f")
                cells += [spread(_percent(mine, split), ".1f"), difference]
            minutes = statistics.mean(row["cpu_seconds"] for row in mine if row["cpu_seconds"] is not None) / 60
            lines.append((name, epochs, len(mine), f"{minutes:.1f}", *cells))
    header = ("way", "epochs", "seeds", "min of a core", "val", "difference", "test", "difference")
    return markdown_table(header, lines)


TABLES: dict[str, Callable[[StudyConfig, Path], str]] = {
    "random": random_table,
    "length": length_table,
    "supernets": supernet_table,
    "derived": derived_table,
    "spaces": spaces_table,
    "hand-made": hand_made_table,
    "retrainings": retrainings_table,
}


def _cells(scores: Sequence[Comparison]) -> Iterable[str]:
    for score in scores:
        yield f"{100 * score.derived:.1f}" + (f" ± {100 * score.spread:.1f}" if score.seeds > 1 else "")
        yield f"{100 * score.random:.1f}"
        yield f"{100 * score.percentile:.0f}"
        # Of one seed the interval would leave out the noise of a training.
        interval = f" ({100 * score.low:+.1f} to {100 * score.high:+.1f})" if score.seeds > 1 else ""
        yield f"{100 * score.difference:+.1f}{interval}"
        yield f"{100 * score.best_of:.1f} of {score.trained}" if score.trained else ""


def _minutes(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds / 60:.0f}"


def _of(study: StudyConfig, results: Path, file: str) -> list[dict[str, Any]]:
    path = results / file
    return read_rows(path, **study.keys) if path.exists() else []


def _percent(rows: Iterable[dict[str, Any]], split: str) -> list[float]:
    return [100 * row[f"{split}_miou"] for row in rows]


if __name__ == "__main__":
    main()
