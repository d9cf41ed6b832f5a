"""The report's section about the choices of a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from derive.judged_networks import fit_table, judged_figure
from dnas.choices import RateChoice
from dnas.report import Bar, Block, Section, Table
from dnas.runs import RunFolder
from search_spaces.choices import ChoiceSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def choice_section(space: ChoiceSpace[Any], logits: Mapping[str, Tensor]) -> list[Section]:
    """The likeliest option of every choice with its probability, and the searched dilation rates."""
    rows: list[list[str | Bar]] = []
    rates: list[list[str | Bar]] = []
    for name, choice in space.choices.items():
        if isinstance(choice, RateChoice):
            rate = float(logits[name])
            rates.append([name, Bar(f"{rate:.2f}", (rate - 1) / max(choice.upper - 1, 1e-9)), f"{choice.upper:g}"])
            continue
        probabilities = logits[name].double().softmax(-1).tolist()
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        others = ", ".join(
            f"{label} {100 * share:.0f} %"
            for index, (label, share) in enumerate(zip(choice.labels, probabilities, strict=True))
            if index != best
        )
        share = probabilities[best]
        rows.append([name, choice.kind, choice.labels[best], Bar(f"{100 * share:.0f} %", share), others])
    tables = []
    if rows:
        tables.append(Table(header=["Choice", "Kind", "Likeliest", "Probability", "Others"], rows=rows))
    if rates:
        tables.append(Table(header=["Dilation rate", "Searched", "Bound"], rows=rates, numeric=[2]))
    lead = "What the search has decided: the probabilities of every choice's options after the last epoch."
    return [Section(title="Choices", lead=lead, blocks=tables)] if tables else []


def judged_section(run: RunFolder, drawing: Drawing | None) -> list[Section]:
    """The judged networks and, of an estimator, its fit; none if no network was judged."""
    if drawing is None:
        return []
    blocks: list[Block] = [judged_figure(drawing), *fit_table(run)]
    lead = "Networks of the space, judged by the supernet's weights after the search."
    return [Section(title="Judged networks", lead=lead, blocks=blocks)]
