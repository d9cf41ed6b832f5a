"""The report's section about branch selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from derive.multi_branch.branches import SELECTION
from dnas.files import read_json
from dnas.report import Block, Section, Table
from dnas.report.numbers import MISSING, format_ms, percent
from dnas.runs import RunFolder


def selection_sections(run: RunFolder) -> list[Section]:
    """A table of all combinations of branches and their scores per architecture; empty for an unfinished run."""
    path = run.path / SELECTION
    if not path.exists():
        return []
    selections = read_json(path, "selection of branches")
    blocks: list[Block] = [_table(name, found["scores"], found["chosen"]) for name, found in selections.items()]
    lead = "Every combination of branches, scored by ACC x (LAT / T)^w on validation images (FasterSeg, Appendix B)."
    return [Section(title="Selection of branches", lead=lead, blocks=blocks)]


def _table(name: str, scores: Sequence[Mapping[str, Any]], chosen: Sequence[int] | None) -> Table:
    changed = any(score["lost_log_probability"] > 0 for score in scores)
    rows = []
    for score in scores:
        row = [
            ", ".join(f"1/{scale}" for scale in score["branches"])
            + (" (chosen)" if score["branches"] == chosen else ""),
            percent(score["miou"]),
            format_ms(score["latency_ms"]),
            MISSING if score["score"] is None else f"{score['score']:.4f}",
        ]
        more = [format_ms(score["argmax_ms"]), f"{score['lost_log_probability']:.2f}"] if changed else []
        rows.append([*row, *more])
    header = [f"{name}: branches", "mIoU (%)", "predicted (ms)", "score"]
    caption = "The mIoU is that of the supernet's output for these branches, the latency that of the derived network."
    if changed:
        header += ["argmax (ms)", "lost log-probability"]
        caption += (
            " To reach the latency target, networks differ from the argmax, at the shown loss in log-probability."
        )
    return Table(header=header, rows=rows, numeric=range(1, len(header)), caption=caption)
