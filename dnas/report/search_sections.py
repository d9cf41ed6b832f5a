"""The report's section on a search: its curves and its collapse monitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dnas.report import curves
from dnas.report.blocks import Block, Figure, Section, Table
from dnas.report.data import Record
from dnas.report.style import svg_text

_CAPTION = "The loss is the mean over the sampled networks. The mIoU is that of fixed random networks in the supernet."
_BILEVEL_CAPTION = (
    "In a healthy search the mIoU stays high while the predicted latency approaches the target and the entropies "
    "decrease. An entropy of 1 is a uniform distribution, 0 a one-hot choice. If it stays near 1, the derived choice "
    "is almost a tie."
)


def search_section(records: Sequence[Record]) -> Section | None:
    """Curves over the epochs, and the warnings of the collapse monitor; None without records."""
    if not records:
        return None
    one_shot = not any(record.get("entropy") for record in records)
    shaded = " The shaded epochs pretrain only the weights." if curves.pretraining_epochs(records) else ""
    blocks: list[Block] = [
        Figure(
            svg=svg_text(curves.search_curves(records)),
            caption=_CAPTION if one_shot else f"{_BILEVEL_CAPTION}{shaded}",
            description="Curves of the search over the epochs: loss, mIoU and the state of the architecture parameters",
            width=960,
        )
    ]
    if curves.has_monitor(records):
        blocks.append(
            Figure(
                svg=svg_text(curves.monitor_curves(records)),
                caption="Signs of a collapse: almost all cells prefer a skip, the expansion ratios approach the "
                "smallest, and the latency dominates the gradients, so that accuracy has no influence.",
                description="Curves of skipped cells, mean expansion ratio and the latency's share of the gradients",
                width=960,
            )
        )
    warnings = _warnings(records)
    if warnings is not None:
        blocks.append(warnings)
    lead = (
        "The weights of the supernet, trained by sampled networks; the mIoU is that of some of them on held-out images."
        if one_shot
        else "Weights and architecture parameters, trained on two disjoint halves of the training images; the mIoU is "
        "that on the second half."
    )
    note = curves.waiting_note(records)
    return Section(title="Search", lead=f"{lead} {note}".rstrip(), blocks=blocks)


def _warnings(records: Sequence[Record]) -> Table | None:
    """Every warning once, with its range of epochs and its first reason."""
    found: dict[tuple[str, int], tuple[int, str]] = {}  # (name, first epoch): (last epoch, reason)
    active: dict[str, int] = {}  # name: first epoch
    for record in records:
        if record.get("kind") != "epoch":
            continue
        epoch, warnings = int(record["epoch"]) + 1, record.get("warnings")
        warnings = warnings if isinstance(warnings, Mapping) else {}
        active = {name: active.get(name, epoch) for name in warnings}
        for name, reason in warnings.items():
            key = name, active[name]
            found[key] = epoch, found[key][1] if key in found else str(reason)
    if not found:
        return None
    rows = [
        (name, f"{first}" if first == last else f"{first} to {last}", reason)
        for (name, first), (last, reason) in found.items()
    ]
    caption = "The search showed signs of a collapse. Check the curves above before you use the derived network."
    return Table(header=("warning", "epochs", "reason"), rows=rows, caption=caption)
