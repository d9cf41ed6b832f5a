"""Figures of a run and the self-contained HTML report."""

from dnas.report.architecture import architecture_drawing
from dnas.report.blocks import Bar, Block, Definitions, Fact, Figure, Gallery, Picture, Section, Swatch, Table
from dnas.report.charts import agreement_scatter, class_iou_bars
from dnas.report.curves import monitor_curves, retraining_curves, search_curves
from dnas.report.data import (
    BranchChoice,
    ClassLabels,
    DerivedArchitecture,
    Example,
    LatencyAgreement,
    LatencySummary,
    NetworkFigures,
    ReportData,
    Reproduction,
)
from dnas.report.dilated import dilated_drawing, is_dilated
from dnas.report.growth import Growth, Stage, growth_picture
from dnas.report.latency_charts import table_chart, table_comparison
from dnas.report.page import render_report, write_report
from dnas.report.pictures import examples_sheet
from dnas.report.rates import rate_curves, sampling_positions
from dnas.report.sections import headline
from dnas.report.style import png_bytes, save_png, save_svg, svg_text

__all__ = [
    "Bar",
    "Block",
    "BranchChoice",
    "ClassLabels",
    "Definitions",
    "DerivedArchitecture",
    "Example",
    "Fact",
    "Figure",
    "Gallery",
    "Growth",
    "LatencyAgreement",
    "LatencySummary",
    "NetworkFigures",
    "Picture",
    "ReportData",
    "Reproduction",
    "Section",
    "Stage",
    "Swatch",
    "Table",
    "agreement_scatter",
    "architecture_drawing",
    "class_iou_bars",
    "dilated_drawing",
    "examples_sheet",
    "growth_picture",
    "headline",
    "is_dilated",
    "monitor_curves",
    "png_bytes",
    "rate_curves",
    "render_report",
    "retraining_curves",
    "sampling_positions",
    "save_png",
    "save_svg",
    "search_curves",
    "svg_text",
    "table_chart",
    "table_comparison",
    "write_report",
]
