"""What the report shows of a search of dilation rates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure as Drawing

from derive.base import DeriveOptions
from derive.dilated.growth_picture import Growth, growth_picture
from derive.dilated.rate_figures import rate_curves, sampling_positions
from derive.dilated.rounding import round_rates
from derive.dilated.snapshots import growth_of, snapshots
from dnas.report import Figure, Section, drawn, png_bytes
from dnas.runs import RunFolder
from search_spaces.regseg import RateSearch

if TYPE_CHECKING:
    from derive.dilated.deriver import DilatedDeriver


def rate_sections(run: RunFolder, deriver: DilatedDeriver) -> list[Section]:
    """The report's sections on a search of dilation rates, finished or not."""
    if not run.records("epoch"):
        return []
    space = deriver.space
    problem = space.bounded(space.network())
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
            "The rates of each block's branches and the field of view of the whole backbone. As a rule one branch of a "
            "block keeps a small rate, for detail, while the other grows as far as the task needs; a rate that has "
            "come to rest at the grey line, its bound, would grow further.",
            "Curves of the dilation rates of every block and of the field of view",
        )
    )
    rounding = [
        drawn(
            positions,
            "Where the kernel of each branch reads, before rounding (open circles, between pixels, as real rates "
            "interpolate) and after (dots). Of a block's rates the smaller are rounded down and the larger up.",
            "Sampling positions of the searched and of the rounded dilation rates of every block",
        ),
        drawn(
            network,
            "The derived network: the dilated blocks with the whole rates of their branches, from the first layers "
            "(stem) to the last (head), the deeper the blue the larger the rate; below each, how many pixels of the "
            f"image a value behind it depends on. Field of view: {derived.field_of_view} pixels.",
            "The dilated blocks of the derived network with their rates and fields of view",
        ),
    ]
    lead = "RegSeg's search: weights and dilation rates, trained together on all training images."
    return [
        Section(title="Dilation rates", lead=lead, blocks=over_time),
        Section(title="Sampling positions", lead="From searched rates to whole ones.", blocks=rounding),
    ]


def _initial(problem: RateSearch) -> tuple[dict[str, float], int]:
    """Rates and field of view of a search that has not begun."""
    now = problem.monitor()
    return now["rates"], now["field_of_view"]


def _growth_figure(growth: Growth) -> Figure:
    return Figure(
        image=png_bytes(growth_picture(growth)),
        caption="One validation image while the rates grow. Above: what the network of that step predicts. Below: the "
        "places of the image from which it makes the output at the cross, through all blocks; the larger a dot, the "
        "more ways lead there.",
        description="Predictions and sampling positions at several steps of the search",
        width=960,
    )


def rate_drawings(run: RunFolder, deriver: DilatedDeriver) -> dict[str, Drawing]:
    """The figures of :func:`rate_sections` by name."""
    space = deriver.space
    problem = space.bounded(space.network())
    growth = growth_of(run, space, problem, snapshots(run, space))
    searched = deriver.searched(run, problem)
    found = {} if growth is None else {"growth": growth_picture(growth)}
    return {
        **found,
        "rates": rate_curves(run.records(), *_initial(problem)),
        "sampling_positions": sampling_positions(searched, round_rates(problem, searched)),
        "derived": deriver.derive(run, DeriveOptions()).architecture.drawing(),
    }
