"""The report's section on a search: its curves and its collapse monitor."""

from __future__ import annotations

from collections.abc import Sequence

from dnas.report import curves
from dnas.report.blocks import Block, Figure, Section, Table
from dnas.report.data import Record
from dnas.report.style import svg_text


def search_section(records: Sequence[Record]) -> Section | None:
    """Curves over the epochs, and what the monitor warned of."""
    if not records:
        return None
    shaded = " The shaded epochs pretrain the weights alone." if curves.pretraining_epochs(records) else ""
    blocks: list[Block] = [
        Figure(
            svg=svg_text(curves.search_curves(records)),
            caption="A healthy search keeps its mIoU while the predicted latency moves to the target and the entropies "
            "fall: an entropy of 1 is no decision, 0 is a decision made. An entropy that stays near 1 means that the "
            f"derived choice was nearly a tie.{shaded}",
            description="Curves of loss, mIoU, predicted latency, latency weight and entropies over the epochs",
            width=960,
        )
    ]
    if curves.has_monitor(records):
        blocks.append(
            Figure(
                svg=svg_text(curves.monitor_curves(records)),
                caption="The signs of a collapse: nearly all cells prefer to be skipped, the widths go to the smallest "
                "ratio, and the latency makes nearly all of a gradient, so that accuracy has no say.",
                description="Curves of skipped cells, mean expansion ratio and the latency's share of the gradients",
                width=960,
            )
        )
    warned = _warnings(records)
    if warned is not None:
        blocks.append(warned)
    lead = "Weights and architecture parameters, trained on two disjoint halves of the training images."
    return Section(title="Search", lead=lead, blocks=blocks)


def _warnings(records: Sequence[Record]) -> Table | None:
    """Every warning once, with the epochs that it lasted and the reason that was given when it began."""
    begun: dict[tuple[str, int], tuple[int, str]] = {}
    standing: dict[str, int] = {}
    for record in records:
        if record.get("kind") != "epoch":
            continue
        epoch, warnings = int(record["epoch"]) + 1, record.get("warnings") or {}
        standing = {name: standing.get(name, epoch) for name in warnings}
        for name, reason in warnings.items():
            key = name, standing[name]
            begun[key] = epoch, begun[key][1] if key in begun else str(reason)
    if not begun:
        return None
    rows = [
        (name, f"{first}" if first == last else f"{first} to {last}", reason)
        for (name, first), (last, reason) in begun.items()
    ]
    caption = "The search looked as if it collapsed. See the curves above before trusting what was derived from it."
    return Table(header=("warning", "epochs", "reason"), rows=rows, caption=caption)
