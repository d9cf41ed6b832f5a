"""The networks of the FasterSeg paper (Table 7 and Figure 6).

Table 7 gives operator, scale s and ratio of every cell; the output of a cell of stride 2 has twice the s * ratio
channels that the table prints. Read this way, with the upsampling path of :mod:`dnas.networks.multi_branch` and the
lookup of the authors' code (which uses the entry of ``conv x2`` for ``zoomed conv x2``), the latencies of the parts add
up to the authors' recorded latency of this network, to the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dnas.networks.layers import scaled
from dnas.networks.multi_branch import BranchSpec, CellSpec, MultiBranchNetwork, MultiBranchSpec
from dnas.networks.registry import PaperFacts, PrintedFigure, register_network
from dnas.profile import FVCORE_PRICES

STUDENT_RATIO = 8
TEACHER_RATIO = 12

#: (operator, scale, ratio) of every cell, by final scale: FasterSeg Table 7.
TABLE_7: dict[int, tuple[tuple[str, int, int], ...]] = {
    16: (
        ("conv_x2", 8, 4),
        ("conv_x2", 8, 4),
        ("zoomed_conv_x2", 8, 4),
        ("zoomed_conv_x2", 8, 4),
        ("conv_x2", 8, 4),
        ("conv_x2", 8, 4),
        ("zoomed_conv_x2", 16, 4),
        ("zoomed_conv_x2", 16, 12),
        ("zoomed_conv_x2", 16, 8),
    ),
    32: (
        ("conv_x2", 8, 4),
        ("conv_x2", 8, 4),
        ("zoomed_conv_x2", 8, 4),
        ("zoomed_conv", 8, 8),
        ("zoomed_conv_x2", 16, 4),
        ("zoomed_conv_x2", 16, 4),
        ("zoomed_conv_x2", 16, 4),
        ("zoomed_conv_x2", 16, 4),
        ("zoomed_conv_x2", 32, 4),
        ("zoomed_conv_x2", 32, 8),
    ),
}


def branch_of_table(rows: Sequence[tuple[str, int, int]], end_ratio: int, scale: int) -> BranchSpec:
    """A branch that ends at ``scale``, from (operator, scale, ratio) rows as in Table 7.

    A cell has stride 2 if the next one is at a coarser scale.
    """
    cells = []
    channels = 8 * end_ratio
    for (operator, here, ratio), following in zip(rows, [*(row[1] for row in rows[1:]), scale], strict=True):
        cells.append(CellSpec(operator, following, channels, following * ratio, following // here))
        channels = following * ratio
    return BranchSpec(scale, channels, tuple(cells))


@register_network(
    "fasterseg_student",
    PaperFacts(
        source="FasterSeg, Tables 3 and 7",
        input_size=(1024, 2048),
        parameters=PrintedFigure("4.4M"),
        multiply_adds=PrintedFigure("28.2G"),
        parameters_off=-0.2223,
        multiply_adds_off=-0.0028,
        elementwise=FVCORE_PRICES,
        why=(
            "the convolutions alone take 27.77 G multiply-adds; the paper does not say what else it counts, fvcore's "
            "counts for normalisation and resampling give 28.12 G; its parameters are those of the network as trained, "
            "with auxiliary heads at 1/16 and 1/32 that inference does not run: 4.35 M with add_auxiliary_heads"
        ),
    ),
)
def fasterseg_student(num_classes: int, width: float = 1.0) -> nn.Module:
    """FasterSeg's student: the branches of Table 7, which share their first three cells.

    ``width`` is a factor of all expansion ratios, which stay integers.
    """
    end_ratio = scaled(STUDENT_RATIO, width, 1)
    branches = tuple(
        branch_of_table([(operator, here, scaled(ratio, width, 1)) for operator, here, ratio in rows], end_ratio, scale)
        for scale, rows in TABLE_7.items()
    )
    return MultiBranchNetwork(MultiBranchSpec(end_ratio, branches), num_classes)


@register_network(
    "fasterseg_widest_student", PaperFacts(source="FasterSeg, section 3.3 and Table 7", input_size=(1024, 2048))
)
def fasterseg_widest_student(num_classes: int) -> nn.Module:
    """The cells of :func:`fasterseg_student`, stem and head included, at the widest ratio, which teachers have."""
    rows_of = {
        scale: [(operator, here, TEACHER_RATIO) for operator, here, _ in rows] for scale, rows in TABLE_7.items()
    }
    branches = tuple(branch_of_table(rows, TEACHER_RATIO, scale) for scale, rows in rows_of.items())
    return MultiBranchNetwork(MultiBranchSpec(TEACHER_RATIO, branches), num_classes)


@register_network("fasterseg_teacher", PaperFacts(source="FasterSeg, section 3.3 and Table 7", input_size=(1024, 2048)))
def fasterseg_teacher(num_classes: int) -> nn.Module:
    """A stand-in for the paper's teacher, the same network as :func:`fasterseg_widest_student`.

    The paper says only that the teacher always has the widest ratio (section 3.3) and does not list its cells. The
    published code derives it from logits of its own, in another file than the student's: with that file, ``dnas derive
    arch_0.pt --which teacher --rule published-code`` is the published teacher.
    """
    return fasterseg_widest_student(num_classes)
