"""DWRSeg's figure of the point-wise weights of competing branches (Fig. 8), and the deriver that reports it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray
from torch import Tensor

from derive.choices.deriver import ChoiceDeriver
from dnas.report.style import label_axes, line_style, new_figure, styled
from dnas.runs import RunFolder
from search_spaces.choices import ChoiceSpace

if TYPE_CHECKING:
    from dnas.report import Section

_WEIGHT = re.compile(r"(?:^|\.)stages\.(\d+)\.\d+\.branches\.(\d+)\.point_wise\.weight$")
_BINS = 40
_STAGES = ("low stage, 1/8", "middle stage, 1/16", "high stage, 1/32")

BranchWeights = Mapping[int, Mapping[int, NDArray[np.float64]]]
"""Absolute point-wise weights by stage (0, 1, 2) and dilation rate."""


def branch_weights(weights: Mapping[str, Tensor]) -> dict[int, dict[int, NDArray[np.float64]]]:
    """The absolute weights of the point-wise convolutions, of all modules of a stage together.

    The weights are multiplied by the scale of the BatchNorm before them, so that branches can be compared.
    """
    found: dict[int, dict[int, list[NDArray[np.float64]]]] = {}
    for name, weight in weights.items():
        match = _WEIGHT.search(name)
        if match is not None:
            scale = weights[name.replace("point_wise.weight", "norm.weight")]
            values = (weight.detach().cpu().double()[:, :, 0, 0] * scale.detach().cpu().double()).abs().flatten()
            found.setdefault(int(match[1]), {}).setdefault(int(match[2]), []).append(values.numpy())
    return {
        stage: {rate: np.concatenate(parts) for rate, parts in sorted(rates.items())}
        for stage, rates in sorted(found.items())
    }


@styled
def weight_distributions(weights: BranchWeights) -> Drawing:
    """For every stage a histogram (PMF, bars) and a cumulative curve (CDF) of each branch, as in DWRSeg's Fig. 8."""
    figure = new_figure(3.5 * len(weights), 2.7)
    panels = np.atleast_1d(figure.subplots(1, len(weights)))
    for axes, (stage, rates) in zip(panels, weights.items(), strict=True):
        largest = float(np.quantile(np.concatenate(list(rates.values())), 0.995)) or 1.0
        edges = np.linspace(0.0, largest, _BINS + 1)
        cumulative = axes.twinx()
        for index, (rate, values) in enumerate(rates.items()):
            counts = np.histogram(np.minimum(values, largest), edges)[0] / len(values)
            style: dict[str, Any] = line_style(index)
            axes.bar(edges[:-1], counts, np.diff(edges), align="edge", alpha=0.35, color=style["color"])
            cumulative.plot(edges[1:], np.cumsum(counts), lw=1.6, label=f"rate {rate}", **style)
        cumulative.set_ylim(0, 1.02)
        cumulative.grid(visible=False)
        label_axes(axes, title=_STAGES[stage], x="absolute weight", y="share" if stage == 0 else "")
    cumulative.legend(loc="lower right", fontsize=7.5)
    return figure


def mean_weights(weights: BranchWeights) -> list[tuple[str, Sequence[tuple[int, float]]]]:
    """For every stage the mean absolute weight of each rate."""
    return [(_STAGES[stage], [(r, float(v.mean())) for r, v in rates.items()]) for stage, rates in weights.items()]


class PointWiseDeriver(ChoiceDeriver):
    """Derives networks of the space ``dwrseg``; the report has the distributions of the point-wise weights."""

    space: ChoiceSpace[Any]

    def more_sections(self, run: RunFolder) -> list[Section]:
        """The distributions, and the mean weights as a table."""
        from dnas.report import Bar, Section, Table, drawn

        weights = _weights_of(run)
        if not weights:
            return []
        largest = max(mean for _, rates in mean_weights(weights) for _, mean in rates) or 1.0
        rows: list[list[str | Bar]] = [
            [stage, str(rate), Bar(f"{mean:.4f}", mean / largest)]
            for stage, rates in mean_weights(weights)
            for rate, mean in rates
        ]
        figure = drawn(
            weight_distributions(weights),
            "Absolute weights of the point-wise convolution of every branch, times the scale of the norm before it. "
            "Bars: probability mass; curves: cumulative distribution. A branch whose curve is further to the right "
            "matters more.",
            "Distributions of the point-wise weights by stage and dilation rate",
        )
        table = Table(header=["Stage", "Dilation rate", "Mean absolute weight"], rows=rows, numeric=[1])
        lead = "How much every stage uses each receptive field (DWRSeg, section 4.2 and Fig. 8)."
        return [Section(title="Point-wise weights by branch", lead=lead, blocks=[figure, table])]

    def search_drawings(self, run: RunFolder) -> dict[str, Drawing]:
        """The curves of the search and the distributions."""
        weights = _weights_of(run)
        found = super().search_drawings(run)
        return {**found, "point_wise_weights": weight_distributions(weights)} if weights else found


def _weights_of(run: RunFolder) -> BranchWeights:
    state = run.load_state()
    return {} if state is None else branch_weights(state["weights"])
