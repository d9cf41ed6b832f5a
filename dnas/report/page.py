"""The report as one self-contained HTML file without external scripts, fonts or style sheets."""

from __future__ import annotations

import base64
import re
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from dnas import __version__
from dnas.files import write_text
from dnas.report import blocks
from dnas.report.data import ReportData
from dnas.report.sections import build_sections, headline
from dnas.report.style import THEME_VARIABLES


def data_uri(image: bytes) -> str:
    """PNG or JPEG bytes as a ``data:`` URI; raises ``ValueError`` for anything else."""
    if image.startswith(b"\x89PNG"):
        kind = "png"
    elif image.startswith(b"\xff\xd8"):
        kind = "jpeg"
    else:
        raise ValueError("expected a PNG or JPEG image")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def inline_svg(svg: str, prefix: str) -> Markup:
    """Prepare an SVG drawing for the page.

    Colours are replaced by the page's variables (light and dark mode), ids get ``prefix`` so that they are unique on
    the page, and the fixed size is removed so that the drawing scales with the page.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"(\sid=\")", rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}-", svg)
    opening, rest = svg.split(">", 1)
    opening = re.sub(r"\s(?:width|height)=\"[^\"]*\"", "", opening)
    colours = "|".join(THEME_VARIABLES)
    rest = re.sub(rf"(?<=: )({colours})\b", lambda found: f"var({THEME_VARIABLES[found[1]]})", rest)
    return Markup(f"{opening}>{rest}")


def anchor(title: str) -> str:
    """The id of a section: its title in lower case, words joined by hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", title.lower())) or "section"


def render_report(data: ReportData) -> str:
    """The page as HTML; all text of ``data`` is escaped."""
    folder = resources.files("dnas.report") / "templates"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(data_uri=data_uri, inline_svg=inline_svg, anchor=anchor)
    environment.tests.update(
        figure=lambda block: isinstance(block, blocks.Figure),
        table=lambda block: isinstance(block, blocks.Table),
        definitions=lambda block: isinstance(block, blocks.Definitions),
        gallery=lambda block: isinstance(block, blocks.Gallery),
        bar=lambda cell: isinstance(cell, blocks.Bar),
        marked=lambda cell: isinstance(cell, blocks.Marked),
    )
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    summary = data.summary or (headline(data.networks[-1]) if data.networks else ())
    return template.render(
        title=data.title,
        subtitle=data.subtitle,
        summary=summary,
        sections=build_sections(data),
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),
        version=__version__,
    )


def write_report(path: str | Path, data: ReportData) -> Path:
    """Write the report of ``data`` as one self-contained HTML file, atomically, and return its path."""
    write_text(path, render_report(data))
    return Path(path)
