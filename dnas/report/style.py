"""Style of the drawings, and their conversion to SVG and PNG; equal drawings give equal bytes."""

from __future__ import annotations

import functools
import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dnas.errors import UserError
from dnas.files import write_atomically, write_text

P = ParamSpec("P")

INK = "#1d232b"
MUTED = "#5f6b7a"
GRID = "#e2e6ec"
SHADE = "#eef1f6"
BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#a9578c"
AMBER = "#c98a00"
SKY = "#3d9bd6"

# Okabe and Ito's colours (amber and purple darkened for thin lines): distinguishable with common colour vision
# deficiencies. Each also has its own line style.
SERIES = (BLUE, VERMILION, GREEN, PURPLE, AMBER, SKY)
LINE_STYLES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1)), (0, (8, 2)))

# The page replaces each colour by its CSS variable, so that drawings follow light and dark mode.
THEME_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    SHADE: "--shade",
    BLUE: "--blue",
    VERMILION: "--vermilion",
    GREEN: "--green",
    PURPLE: "--purple",
    AMBER: "--amber",
    SKY: "--sky",
}

_PARAMETERS: dict[str, Any] = {
    "svg.hashsalt": "dnas",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.dpi": 100,
}


@contextmanager
def _drawing() -> Iterator[None]:
    """Context with matplotlib's defaults and the report's style; the caller's settings are restored at exit."""
    defaults: dict[str, Any] = {
        str(key): value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")
    }
    parameters: Any = {**defaults, **_PARAMETERS}  # the keys' literal types differ between matplotlib versions
    with warnings.catch_warnings():
        # Class names may be in any script: the browser draws them, matplotlib lacks only the glyphs' widths.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font", category=UserWarning)
        warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
        with matplotlib.rc_context(parameters):
            yield


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator for drawing functions: apply the report's style instead of the user's matplotlibrc."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _drawing():
            return draw(*args, **kwargs)

    return wrapper


def svg_text(figure: Figure) -> str:
    """The figure as an ``<svg>`` element: no prolog, no metadata, no date; equal figures give equal text."""
    stream = io.StringIO()
    with _drawing():
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL).strip()


def save_svg(figure: Figure, path: str | Path) -> None:
    """Write the figure as an SVG file, atomically."""
    write_text(path, '<?xml version="1.0" encoding="utf-8"?>\n' + svg_text(figure) + "\n")


def save_png(figure: Figure, path: str | Path, *, dots_per_inch: int = 150) -> None:
    """Write the figure as a PNG file with a white background, atomically."""
    data = png_bytes(figure, dots_per_inch=dots_per_inch)
    write_atomically(path, lambda file: file.write(data))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as SVG or PNG, depending on the suffix of ``path``; :class:`UserError` for any other suffix."""
    save = {".svg": save_svg, ".png": save_png}.get(path.suffix)
    if save is None:
        raise UserError(f"{path}: expected a file name that ends in .svg or .png")
    save(figure, path)


def png_bytes(figure: Figure, *, dots_per_inch: int = 150) -> bytes:
    """The figure as PNG with a white background; equal figures give equal bytes."""
    stream = io.BytesIO()
    with _drawing():
        figure.savefig(stream, format="png", dpi=dots_per_inch, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` by ``height`` inches with automatic layout."""
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.04)
    return figure


def series_indices(names: Sequence[str]) -> list[int]:
    """The style index of each series: student and teacher have fixed ones in every chart, others get the next free."""
    fixed = {"student": 0, "teacher": 1}
    free = (index for index in itertools.count() if index not in [fixed[name] for name in names if name in fixed])
    return [fixed[name] if name in fixed else next(free) for name in names]


def line_style(index: int) -> dict[str, Any]:
    """Colour and dash pattern of series ``index``."""
    return {"color": SERIES[index % len(SERIES)], "linestyle": LINE_STYLES[index % len(LINE_STYLES)]}


def legend_text(name: str) -> str:
    """``name`` as a legend entry; matplotlib would drop one that starts with an underscore."""
    return f"\u200b{name}" if name.startswith("_") else name


def label_axes(axes: Axes, *, title: str, x: str, y: str) -> None:
    """Set the title and the axis labels (with units)."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
