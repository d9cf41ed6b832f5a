"""The judged networks of a search, for its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from derive.estimator import ESTIMATOR, read_fit
from derive.judging import judged_records
from dnas.report import Figure, Table, judged_chart, svg_text
from dnas.runs import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def judged_drawing(run: RunFolder, chosen: tuple[float, float] | None, target_ms: float | None) -> Drawing | None:
    """MIoU against latency of all judged networks; None if there are none.

    ``chosen``: latency in ms and mIoU (a fraction) of the derived one.
    """
    points: dict[str, list[tuple[float, float]]] = {"random": [], "candidate": []}
    for record in judged_records(run):
        if record.kind in points and record.latency_ms is not None:
            points[record.kind].append((record.latency_ms, record.miou))
    if not any(points.values()):
        return None
    return judged_chart(points["random"], points["candidate"], chosen, target_ms)


def judged_figure(drawing: Drawing) -> Figure:
    """:func:`judged_drawing` as a block of the report."""
    return Figure(
        svg=svg_text(drawing),
        caption="Networks with the supernet's weights and BatchNorm statistics of their own, scored on training images "
        "that the weights have not seen. The best candidate is derived, unless another target is asked for.",
        description="Supernet mIoU of the judged networks against their predicted latency",
    )


def fit_table(run: RunFolder) -> list[Table]:
    """How well the estimator fits; none without an estimator."""
    if not (run.path / ESTIMATOR).exists():
        return []
    fit = read_fit(run)
    row = (
        str(fit.networks),
        f"{fit.tau:.2f}",
        f"{fit.rho:.2f}",
        f"{100 * fit.error:.2f}",
        f"{100 * fit.spread:.2f}",
    )
    table = Table(
        header=("judged networks", "Kendall's tau", "Spearman's rho", "error (points)", "spread (points)"),
        rows=[row],
        numeric=range(5),
        caption="How well the additive model predicts the mIoU in the supernet of networks that it was not fitted to.",
    )
    return [table]
