"""A drawing as a figure of the page."""

from __future__ import annotations

from matplotlib.figure import Figure as Drawing

from dnas.report.blocks import Figure
from dnas.report.style import svg_text

PIXELS_PER_INCH = 92


def drawn(drawing: Drawing, caption: str, description: str) -> Figure:
    """``description`` is what a screen reader says of it."""
    width = round(float(drawing.get_figwidth()) * PIXELS_PER_INCH)
    return Figure(svg=svg_text(drawing), caption=caption, description=description, width=width)
