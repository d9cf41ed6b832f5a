"""``dnas latency`` for existing tables: show, diff, merge, export, import."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dnas.cli.common import (
    FigureOption,
    JsonOption,
    SetOption,
    TableArgument,
    find_table,
    note,
    print_json,
)
from dnas.errors import UserError

if TYPE_CHECKING:
    from dnas.latency import LatencyTable, TableDiff

_CSV_FIELDS = ("latency_ms", "p10_ms", "p90_ms", "repetitions", "rounds")


def import_table(
    source: Annotated[Path, typer.Argument(metavar="OLD.npy", help="FasterSeg's published latency_lookup_table.npy.")],
    out: Annotated[Path, typer.Option("--out", help="The table to write.")],
    device_name: Annotated[
        str | None, typer.Option("--device-name", help="The measured device; default: the authors' GTX 1080 Ti.")
    ] = None,
) -> None:
    """Read a latency table in the format of FasterSeg's published code; its pickle is not executed."""
    from search_spaces import import_table as read

    table = read(source, device_name)
    table.save(out)
    height, width = table.provenance.input_size
    note(f"{out}: {len(table)} entries for images of {height}x{width} on {table.provenance.device.name}")


def show(
    table: TableArgument,
    slowest: Annotated[int, typer.Option("--slowest", min=0, help="Number of slowest entries to list.")] = 10,
    space: Annotated[str | None, typer.Option("--space", help="Also print the sensitivities of this space.")] = None,
    figure: FigureOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a table's summary, provenance and slowest entries."""
    from dnas.latency import LatencyTable

    loaded = LatencyTable.load(table)
    content: dict[str, Any] = {
        "summary": loaded.summary(),
        "provenance": loaded.to_mapping()["provenance"],
        "slowest": [
            {"key": key, "latency_ms": entry.median, "p10": entry.p10, "p90": entry.p90}
            for key, entry in loaded.slowest(slowest)
        ],
    }
    if space is not None:
        content["sensitivities"] = _sensitivities(loaded, space, settings or [])
    if figure is not None:
        from dnas.report import save_figure, table_chart

        by_operator = {
            operator: [(entry.median, entry.p10, entry.p90) for entry in entries]
            for operator, entries in loaded.by_operator().items()
        }
        save_figure(table_chart(by_operator), figure)
    if as_json:
        print_json(content)
        return
    for title in ("summary", "provenance", "sensitivities"):
        if title in content:
            print(title)
            _print_mapping(content[title])
    print("slowest" if slowest else "", end="\n" if slowest else "")
    for row in content["slowest"]:
        print(f"  {row['latency_ms']:9.4f} ms  ({row['p10']:.4f} to {row['p90']:.4f})  {row['key']}")


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", parser=find_table, help="A latency table.")],
    second: Annotated[Path, typer.Argument(metavar="B", parser=find_table, help="The table to compare with it.")],
    others: Annotated[
        list[Path] | None, typer.Argument(metavar="[C...]", parser=find_table, help="Further tables, for a matrix.")
    ] = None,
    largest: Annotated[int, typer.Option("--largest", min=0, help="Number of largest differences to list.")] = 10,
    figure: FigureOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two tables by entry: B / A for each kind of operator. Two equal builds show the repeatability.

    Three or more tables are compared in pairs, as a matrix.
    """
    from dnas.latency import LatencyTable

    if others:
        if figure is not None:
            raise UserError("--figure compares two tables; leave the others out")
        _print_matrix([first, second, *others], as_json)
        return
    found = LatencyTable.load(first).diff(LatencyTable.load(second))
    if figure is not None:
        from dnas.report import save_figure, table_comparison

        names = (first.stem, second.stem) if first.stem != second.stem else ("A", "B")
        save_figure(table_comparison(found.by_operator(), *names), figure)
    if as_json:
        print_json(found.to_mapping(largest))
        return
    for line in _diff_lines(found, largest):
        print(line)


def _print_matrix(paths: list[Path], as_json: bool) -> None:
    from dnas.latency import LatencyTable
    from dnas.latency.matrix import diff_matrix

    found = diff_matrix([LatencyTable.load(path) for path in paths])
    if as_json:
        print_json({"tables": [str(path) for path in paths], **found})
        return
    for number, path in enumerate(paths, start=1):
        print(f"{number:>3}  {path}")
    titles = {
        "ratio": "median of column / row",
        "median_relative_difference": "median relative difference (%)",
        "spearman": "Spearman correlation",
    }
    for name, title in titles.items():
        factor, digits = (100, 2) if name == "median_relative_difference" else (1, 3)
        print(f"{title}\n{'':>4}" + "".join(f"{number:>9}" for number in range(1, len(paths) + 1)))
        for number, row in enumerate(found[name], start=1):
            cells = ("-" if value is None else f"{factor * value:.{digits}f}" for value in row)
            print(f"{number:>4}" + "".join(f"{cell:>9}" for cell in cells))


def merge(
    first: Annotated[Path, typer.Argument(metavar="A", parser=find_table, help="A latency table.")],
    second: Annotated[Path, typer.Argument(metavar="B", parser=find_table, help="The table to merge with it.")],
    out: Annotated[Path, typer.Option("--out", help="The table to write.")],
    as_json: JsonOption = False,
) -> None:
    """Merge two tables with equal settings; of an entry in both, the one with more timed calls is kept."""
    from dnas.latency import LatencyTable

    one, other = LatencyTable.load(first), LatencyTable.load(second)
    merged = one.merge(other)
    merged.save(out)
    shared = sum(key in other.entries for key in one.entries)
    if as_json:
        print_json({"entries": len(merged), "first": len(one), "second": len(other), "shared": shared})
    note(f"{out}: {len(merged)} entries, {shared} of them in both tables")


def export(
    table: TableArgument,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    file_format: Annotated[str, typer.Option("--format", help="csv.")] = "csv",
) -> None:
    """Write the entries of a table for other programs: one row per entry, its signature in columns."""
    from dnas.files import write_text
    from dnas.latency import LatencyTable

    if file_format != "csv":
        raise UserError(f"format {file_format!r}: expected csv")
    loaded = LatencyTable.load(table)
    write_text(out, csv_text(loaded))
    note(f"{out}: {len(loaded)} entries")


def csv_text(table: LatencyTable) -> str:
    """The entries as CSV, sorted by key: key, operator signature, latencies in ms, numbers of calls and rounds."""
    from dnas.latency import OperatorSpec

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["key", "operator", "inputs", "out_channels", "stride", "extras", *_CSV_FIELDS])
    for key, row in sorted(table.to_mapping()["entries"].items()):
        spec = OperatorSpec.from_key(key)
        inputs = "+".join("x".join(map(str, shape)) for shape in spec.inputs)
        extras = " ".join(f"{name}={value}" for name, value in spec.extras)
        values = [repr(row[name]) for name in _CSV_FIELDS]
        writer.writerow([key, spec.operator, inputs, spec.out_channels, spec.stride, extras, *values])
    return stream.getvalue()


def _diff_lines(found: TableDiff, largest: int) -> list[str]:
    lines = [f"{'operator':<18} {'entries':>7}  {'median':>7} {'10 %':>7} {'90 %':>7}   B / A"]
    for operator, row in found.ratios_by_operator().items():
        lines.append(
            f"{operator:<18} {row['entries']:>7.0f}  {row['median']:>7.3f} {row['p10']:>7.3f} {row['p90']:>7.3f}"
        )
    lines.append(
        f"{len(found.latencies_ms)} entries in both, {len(found.only_first)} only in A, {len(found.only_second)} only "
        f"in B; median relative difference {100 * found.median_relative_difference:.2f} %"
    )
    lines += [f"measured differently: {text}" for text in found.measured_differently]
    for key, one, other in found.largest(largest):
        lines.append(f"  {one:9.4f} ms  {other:9.4f} ms  {other / one:6.3f}  {key}")
    return lines


def _sensitivities(table: LatencyTable, space: str, settings: list[str]) -> dict[str, object]:
    from search_spaces import load_space

    found = load_space(space, settings).describe_prices(table)
    if not found:
        raise UserError(f"{space}: sensitivities are not defined for this kind of search space")
    return found


def _print_mapping(values: Mapping[str, object], indent: str = "  ") -> None:
    for key, inner in values.items():
        if isinstance(inner, dict):
            print(f"{indent}{key}")
            _print_mapping(inner, indent + "  ")
        else:
            print(f"{indent}{key:<18} {inner}")
