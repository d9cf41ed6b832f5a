"""The report's sections about a search of dilation rates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure as Drawing

from derive.base import DeriveOptions
from derive.dilated.growth_picture import Growth, growth_picture
from derive.dilated.rate_figures import rate_curves, sampling_positions
from derive.dilated.rate_records import epoch_records
from derive.dilated.rounding import round_rates
from derive.dilated.snapshots import growth_of, snapshots
from dnas.report import Figure, Section, drawn, png_bytes
from dnas.runs import RunFolder
from search_spaces.regseg import RateSearch

if TYPE_CHECKING:
    from derive.dilated.deriver import DilatedDeriver


def rate_sections(run: RunFolder, deriver: DilatedDeriver) -> list[Section]:
    """The report's sections about a search of dilation rates, finished or not."""
    if not run.records("epoch"):
        return []
    space = deriver.space
    problem = space.bounded(space.network())
    epoch_records(run, problem.layers)
    growth = growth_of(run, space, problem, snapshots(run, space))
    curves = rate_curves(run.records(), *_initial(problem))
    searched = deriver.searched(run, problem)
    positions = sampling_positions(searched, round_rates(problem, searched))
    derived = deriver.derive(run, DeriveOptions())
    network = derived.architecture.drawing()
    over_time = [] if growth is None else [_growth_figure(growth)]
    over_time.append(
        drawn(
            curves,
            "The rates of each block's branches and the field of view of the whole backbone. Typically one branch of a "
            "block keeps a small rate, for detail, while the other grows as far as the task needs. The grey line is "
            "the upper bound; a rate that stays at it would grow further.",
            "Curves of the dilation rates of every block and of the field of view",
        )
    )
    rounding = [
        drawn(
            positions,
            "Sampling positions of each branch's kernel before rounding (open circles; fractional rates interpolate "
            "between pixels) and after (dots). The smaller rates of a block are rounded down, the larger ones up.",
            "Sampling positions of the searched and of the rounded dilation rates of every block",
        ),
        drawn(
            network,
            "The derived network: the dilated blocks with the integer rates of their branches, from the stem (left) "
            "to the head (right); darker blue means a larger rate. The bar below a block is the field of view of its "
            f"output in pixels. Field of view of the network: {derived.field_of_view} pixels.",
            "The dilated blocks of the derived network with their rates and fields of view",
        ),
    ]
    lead = "RegSeg's search: weights and dilation rates are trained jointly on all training images."
    return [
        Section(title="Dilation rates", lead=lead, blocks=over_time),
        Section(
            title="Sampling positions", lead="Searched rates and the integer rates derived from them.", blocks=rounding
        ),
    ]


def _initial(problem: RateSearch) -> tuple[dict[str, float], int]:
    """Rates and field of view before the first step."""
    state = problem.monitor()
    return state["rates"], state["field_of_view"]


def _growth_figure(growth: Growth) -> Figure:
    return Figure(
        image=png_bytes(growth_picture(growth)),
        caption="One validation image while the rates grow. Above: the prediction at that step. Below: the positions "
        "that the output at the cross samples through all blocks, and the field of view (FoV); a larger dot has more "
        "weight.",
        description="Predictions and sampling positions at several steps of the search",
        width=960,
    )


def rate_drawings(run: RunFolder, deriver: DilatedDeriver) -> dict[str, Drawing]:
    """The figures of :func:`rate_sections` by name."""
    space = deriver.space
    problem = space.bounded(space.network())
    epoch_records(run, problem.layers)
    growth = growth_of(run, space, problem, snapshots(run, space))
    searched = deriver.searched(run, problem)
    found = {} if growth is None else {"growth": growth_picture(growth)}
    return {
        **found,
        "rates": rate_curves(run.records(), *_initial(problem)),
        "sampling_positions": sampling_positions(searched, round_rates(problem, searched)),
        "derived": deriver.derive(run, DeriveOptions()).architecture.drawing(),
    }
