"""RegSeg: a sequence of dilated blocks instead of a context module (arXiv 2111.09957, versions 1 and 3).

The paper's 39.1 G are counted by fvcore, which includes normalisation and interpolation; the convolutions alone take
38.35 G multiply-adds at 1024x2048.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dnas.errors import UserError
from dnas.networks.registry import PaperFacts, PrintedFigure, register_network
from dnas.networks.regseg_alternatives import ALTERNATIVES
from dnas.networks.regseg_backbone import RegSegBackbone
from dnas.networks.regseg_decoder import RegSegDecoder
from dnas.networks.segmentation import SegmentationNetwork
from dnas.profile import FVCORE_PRICES

_ROUNDED_TWICE = "3,334,951 parameters, 0.15 % fewer than printed; the paper may have rounded 3.335 M again"

#: Dilation rates of the last 13 blocks, chosen by hand: version 1, Table 4, row 1 (`exp48` of the published code).
MANUAL_RATES: tuple[tuple[int, ...], ...] = ((1, 1), (1, 2), *[(1, 4)] * 4, *[(1, 14)] * 7)

#: Dilation rates found by gradient descent: version 3, Table 2.
SEARCHED_RATES: tuple[tuple[int, ...], ...] = (
    *((1, 1), (1, 2), (1, 2), (1, 3), (2, 3), (2, 7), (2, 3)),
    *((2, 6), (2, 5), (2, 9), (2, 11), (4, 7), (5, 14)),
)


_ONE_BY_ONE: tuple[tuple[int, ...], ...] = ((1, 1), (1, 2), (1, 4), (1, 6), (1, 8), (1, 10))
_FOUR_WAYS: tuple[tuple[int, ...], ...] = ((1, 1), (1, 2), *[(1, 4)] * 6)

#: Lists of rates by name: the rows of version 1, Table 4 (row 10 is ``regnety_600mf``), and version 3, Table 2.
RATE_LISTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "v1_row1": MANUAL_RATES,
    "v1_row2": (*_ONE_BY_ONE, *[(1, 12)] * 7),
    "v1_row3": (*_ONE_BY_ONE, *[(1, 3, 6, 12)] * 7),
    "v1_row4": (*_ONE_BY_ONE[:5], *[(1, 10)] * 8),
    "v1_row5": (*_FOUR_WAYS, *[(1, 6, 12, 18)] * 5),
    "v1_row6": (*_ONE_BY_ONE[:3], *[(1, 6)] * 10),
    "v1_row7": (*_ONE_BY_ONE, (1, 12), *[(1, 14)] * 6),
    "v1_row8": (*[(1, 4)] * 5, *[(1, 10)] * 8),
    "v1_row9": (*_ONE_BY_ONE, *[(1, 4, 8, 12)] * 7),
    "v3_table2": SEARCHED_RATES,
}


def build_regseg(
    num_classes: int,
    rates: Sequence[Sequence[int]] | str = MANUAL_RATES,
    split_equal: bool = False,
    width: float = 1.0,
    decoder: str = "regseg",
) -> SegmentationNetwork:
    """RegSeg with the given dilation rates, and channels times ``width``.

    ``rates`` holds the rates of the last 13 blocks, one per branch, or is a name of :data:`RATE_LISTS`; ``split_equal``
    keeps one convolution per branch even if the rates of a block are equal (needed by a search, which changes them).
    The dilated convolutions are the ``nn.Conv2d`` modules in ``backbone.stage16.*.dilated.branches``. ``decoder`` is
    "regseg", or one of :data:`dnas.networks.regseg_alternatives.ALTERNATIVES`, which have one width. Raises
    :class:`UserError` for invalid rates and for unknown names.
    """
    if isinstance(rates, str):
        if rates not in RATE_LISTS:
            raise UserError(f"dilation rates {rates!r}: expected a list of 13 blocks or one of {', '.join(RATE_LISTS)}")
        rates = RATE_LISTS[rates]
    backbone = RegSegBackbone(rates, split_equal=split_equal, width=width)
    fused: nn.Module
    if decoder == "regseg":
        fused = RegSegDecoder(backbone.channels, width)
    elif decoder in ALTERNATIVES:
        fused = ALTERNATIVES[decoder](backbone.channels)
    else:
        raise UserError(f"decoder {decoder!r}: expected one of regseg, {', '.join(ALTERNATIVES)}")
    return SegmentationNetwork(backbone, fused, nn.Conv2d(fused.out_channels, num_classes, 1))  # type: ignore[arg-type]


@register_network(
    "regseg",
    PaperFacts(
        source="RegSeg v1, Tables 4 (row 1) and 9",
        input_size=(1024, 2048),
        parameters=PrintedFigure("3.34M"),
        multiply_adds=PrintedFigure("39.1G"),
        elementwise=FVCORE_PRICES,
        parameters_off=-0.0015,
        why=_ROUNDED_TWICE,
        field_of_view=3807,
    ),
)
def regseg(
    num_classes: int,
    rates: Sequence[Sequence[int]] | str = MANUAL_RATES,
    split_equal: bool = False,
    width: float = 1.0,
    decoder: str = "regseg",
) -> SegmentationNetwork:
    """RegSeg as published (`exp48_decoder26`); see :func:`build_regseg` for the options."""
    return build_regseg(num_classes, rates, split_equal, width, decoder)


@register_network(
    "regseg_dnas",
    PaperFacts(
        source="RegSeg v3, Tables 2 and 8",
        input_size=(1024, 2048),
        parameters=PrintedFigure("3.34M"),
        multiply_adds=PrintedFigure("39.1G"),
        elementwise=FVCORE_PRICES,
        parameters_off=-0.0015,
        why=_ROUNDED_TWICE,
        field_of_view=2399,
    ),
)
def regseg_dnas(num_classes: int, split_equal: bool = False, decoder: str = "regseg") -> SegmentationNetwork:
    """RegSeg with the dilation rates found by gradient descent (version 3, Table 2)."""
    return build_regseg(num_classes, SEARCHED_RATES, split_equal, decoder=decoder)
