"""Chart of the networks that a search has judged."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from dnas.report.style import INK, MUTED, SERIES, label_axes, new_figure, styled

Points = Sequence[tuple[float, float]]


@styled
def judged_chart(
    random: Points, candidates: Points, chosen: tuple[float, float] | None, target_ms: float | None
) -> Figure:
    """Predicted latency and mIoU in the supernet, as (ms, mIoU) with mIoU as a fraction.

    ``random`` networks are grey, ``candidates`` coloured, the ``chosen`` one is circled. The target is a band of 5 %.
    """
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    if target_ms is not None:
        axes.axvspan(0.95 * target_ms, 1.05 * target_ms, color=SERIES[0], alpha=0.1, linewidth=0, label="target, 5 %")
    for points, colour, size, label in (
        (random, MUTED, 12, "random networks"),
        (candidates, SERIES[0], 26, "candidates"),
    ):
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, [100 * miou for miou in y], s=size, color=colour, alpha=0.75, linewidths=0, label=label)
    if chosen is not None:
        ms, miou = chosen
        axes.plot(ms, 100 * miou, "o", ms=11, mfc="none", mec=INK, mew=1.6, ls="none", label="chosen by the search")
    figure.legend(loc="outside lower center", ncols=4)  # inside it would cover points
    label_axes(axes, title="Networks judged in the supernet", x="predicted latency (ms)", y="mIoU (%)")
    return figure
