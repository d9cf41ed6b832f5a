"""Conversion of a matplotlib drawing to a figure of the page."""

from __future__ import annotations

from matplotlib.figure import Figure as Drawing

from dnas.report.blocks import Figure
from dnas.report.style import svg_text

PIXELS_PER_INCH = 92


def drawn(drawing: Drawing, caption: str, description: str) -> Figure:
    """The drawing as a figure of the page; ``description`` is the text for screen readers."""
    width = round(float(drawing.get_figwidth()) * PIXELS_PER_INCH)
    return Figure(svg=svg_text(drawing), caption=caption, description=description, width=width)
