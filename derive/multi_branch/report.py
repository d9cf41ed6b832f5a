"""The report's sections about how a search has chosen: decidedness, judged networks and branch selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from derive.base import logits_of
from derive.judged_networks import fit_table, judged_drawing, judged_figure
from derive.multi_branch.branches import SELECTION
from derive.multi_branch.decidedness import decidedness
from derive.multi_branch.selections import SelectionScore, read_selections
from dnas.report import Block, Section, Table
from dnas.report.numbers import MISSING, format_ms, percent
from dnas.runs import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def selection_sections(run: RunFolder) -> list[Section]:
    """How decided the choices are, which networks were judged, and the selected branches; empty if unfinished."""
    path = run.path / SELECTION
    if not path.exists():
        return []
    selections = read_selections(run)
    drawing = judged_students(run)
    blocks: list[Block] = [_decidedness(run, list(selections))]
    if drawing is not None:
        blocks.append(judged_figure(drawing))
    blocks += fit_table(run)
    blocks += [_table(name, found.scores, found.chosen) for name, found in selections.items()]
    lead = (
        "How decided the search is, and every combination of branches, scored by ACC x (LAT / T)^w on held-out "
        "training images (FasterSeg, Appendices B and H)."
    )
    return [Section(title="Selection", lead=lead, blocks=blocks)]


def judged_students(run: RunFolder) -> Drawing | None:
    """MIoU against latency of all judged networks; None if there are none."""
    student = read_selections(run).get("student")
    if student is None:
        return judged_drawing(run, None, None)
    best = next((score for score in student.scores if score.branches == student.chosen), None)
    chosen = None
    if best is not None and best.latency_ms is not None and best.miou is not None:
        chosen = best.latency_ms, best.miou
    return judged_drawing(run, chosen, student.target_ms)


def _decidedness(run: RunFolder, names: Sequence[str]) -> Table:
    logits = run.load_weights("architecture")
    rows = [
        (name, one.kind, f"{one.entropy:.3f}", f"{one.margin:.3f}")
        for name in names
        for one in decidedness(logits_of(logits, name))
    ]
    caption = (
        "Mean entropy of the choices (1: all options are equally likely, 0: decided) and mean difference between the "
        "largest and the second largest probability. Near 1 the likeliest network is close to a random one."
    )
    return Table(header=("architecture", "choice", "entropy", "margin"), rows=rows, numeric=(2, 3), caption=caption)


def _table(name: str, scores: Sequence[SelectionScore], chosen: Sequence[int] | None) -> Table:
    changed = any(score.lost_log_probability > 0 for score in scores)
    judged = any(score.candidates > 1 for score in scores)
    rows = []
    for score in scores:
        row = [
            ", ".join(f"1/{scale}" for scale in score.branches) + (" (chosen)" if score.branches == chosen else ""),
            percent(score.miou),
            format_ms(score.latency_ms),
            MISSING if score.score is None else f"{score.score:.4f}",
        ]
        more = [format_ms(score.argmax_ms), f"{score.lost_log_probability:.2f}"] if changed else []
        rows.append([*row, *more])
    header = [f"{name}: branches", "mIoU (%)", "predicted (ms)", "score"]
    source = "the derived network with inherited weights" if judged else "the supernet's output for these branches"
    caption = f"The mIoU is that of {source}, the latency that of the derived network."
    if changed:
        header += ["argmax (ms)", "lost log-probability"]
        caption += (
            " To reach the latency target, networks differ from the argmax, at the shown loss in log-probability."
        )
    return Table(header=header, rows=rows, numeric=range(1, len(header)), caption=caption)
