"""Figures for runs, and the self-contained HTML report."""

from dnas.report.blocks import Bar, Block, Definitions, Fact, Figure, Gallery, Picture, Section, Swatch, Table
from dnas.report.charts import agreement_scatter, class_iou_bars
from dnas.report.curves import has_monitor, monitor_curves, retraining_curves, search_curves
from dnas.report.data import (
    ClassLabels,
    Example,
    LatencyAgreement,
    LatencySummary,
    NetworkFigures,
    ReportData,
    Reproduction,
)
from dnas.report.drawn import drawn
from dnas.report.judged_chart import judged_chart
from dnas.report.latency_charts import table_chart, table_comparison
from dnas.report.page import render_report, write_report
from dnas.report.pictures import examples_sheet
from dnas.report.ranking_section import ranking_chart, ranking_section
from dnas.report.search_sections import search_section
from dnas.report.sections import headline
from dnas.report.style import png_bytes, save_figure, save_png, save_svg, svg_text

__all__ = [
    "Bar",
    "Block",
    "ClassLabels",
    "Definitions",
    "Example",
    "Fact",
    "Figure",
    "Gallery",
    "LatencyAgreement",
    "LatencySummary",
    "NetworkFigures",
    "Picture",
    "ReportData",
    "Reproduction",
    "Section",
    "Swatch",
    "Table",
    "agreement_scatter",
    "class_iou_bars",
    "drawn",
    "examples_sheet",
    "has_monitor",
    "headline",
    "judged_chart",
    "monitor_curves",
    "png_bytes",
    "ranking_chart",
    "ranking_section",
    "render_report",
    "retraining_curves",
    "save_figure",
    "save_png",
    "save_svg",
    "search_curves",
    "search_section",
    "svg_text",
    "table_chart",
    "table_comparison",
    "write_report",
]
