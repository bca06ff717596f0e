"""How the plots look: palette, type, axes, and the way from a figure to files and into the page.

Every colour has a role, written into the SVG as its hex value; in the page, `inline` turns it into a CSS variable, so that dark mode
and print choose other values for the same roles. Nothing is told by colour alone: algorithms have their own marker, closing policies
their own line style."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1b1f24", "#5c6470", "#dfe2e6", "#fefefe"
#: Okabe & Ito, without the yellow (too pale for a line) and the black (that is the ink).
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
COMPUTING, WAITING, HATCH, EXCHANGING = OKABE_ITO[0], "#f7c65b", "#4a3500", INK
MARKERS = "osD^vP"
DASHES: dict[str, str | tuple[int, tuple[float, ...]]] = {
    "first": "-",
    "barrier": (0, (4, 1.6)),
    "quorum": (0, (6, 1.6, 1.2, 1.6)),
    "deadline": (0, (1.2, 1.4)),
}
#: One unit for all: a phone shows it at about one pixel a point, a desk at a third more.
WIDTH_POINTS = 372.0
FONT_SIZE = 10.5
_ROLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", WAITING: "waiting", HATCH: "hatch"} | {
    color: f"series{i}" for i, color in enumerate(OKABE_ITO)
}
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_RC: dict[Any, Any] = {
    "font.size": FONT_SIZE,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": MUTED,
    "axes.labelsize": FONT_SIZE,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": FONT_SIZE - 0.5,
    "ytick.labelsize": FONT_SIZE - 0.5,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.7,
    "svg.fonttype": "none",
    "path.simplify_threshold": 0.3,
}


@contextmanager
def style(name: str) -> Iterator[None]:
    """Around the making and the saving of a figure. name: makes the ids within its SVG the same in every run."""
    with matplotlib.rc_context({**_RC, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def make_figure(height_points: float) -> Figure:
    """Of the common width; its texts and positions are in points."""
    figure = Figure(figsize=(WIDTH_POINTS / 72, height_points / 72))
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at points from the left and from the top."""
    full = figure.get_figheight() * 72
    return figure.add_axes((left / WIDTH_POINTS, 1 - (top + height) / full, width / WIDTH_POINTS, height / full))


def heading(figure: Figure, text: str, top: float = 4.0, left: float = 2.0, *, bold: bool = True) -> None:
    """A line of text at points from the left and the top."""
    full = figure.get_figheight() * 72
    figure.text(
        left / WIDTH_POINTS,
        1 - top / full,
        clean(text),
        va="top",
        fontweight="bold" if bold else "normal",
        fontsize=FONT_SIZE + 1 if bold else FONT_SIZE - 0.5,
        color=INK if bold else MUTED,
    )


def color_of(algorithm: str, algorithms: Sequence[str]) -> str:
    """The same for an algorithm in all plots of a comparison."""
    return OKABE_ITO[algorithms.index(algorithm) % len(OKABE_ITO)]


def marker_of(algorithm: str, algorithms: Sequence[str]) -> str:
    """The same for an algorithm in all plots of a comparison."""
    return MARKERS[algorithms.index(algorithm) % len(MARKERS)]


def clean(text: str, longest: int = 60) -> str:
    """What can be drawn and written: no control characters, no halves of surrogate pairs, no endless names."""
    text = re.sub(r"[\x00-\x1f\x7f]", " ", text).encode("utf-8", "replace").decode()
    return text if len(text) <= longest else text[: longest - 1] + "…"


def save(figure: Figure, name: str, folder: Path) -> tuple[list[Path], str]:
    """Write name.svg and name.png; the SVG's text too. Raises OSError."""
    svg = io.StringIO()
    figure.savefig(svg, format="svg", facecolor="white", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = re.sub(r"font-family: [^;\"]+", lambda _: f"font-family: {_FONTS}", svg.getvalue())
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    paths[0].write_text(text, encoding="utf-8")
    figure.savefig(paths[1], format="png", dpi=200, facecolor="white")
    return paths, text


def inline(svg: str, name: str, description: str) -> str:
    """The SVG as a part of an HTML page: ids of its own, colours by role, no size and no paper. description: escaped already."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', rf'\1 role="img" aria-label="{description}"', svg, count=1
    )
    svg = re.sub(r"font-family: [^;\"]+; ?", "", svg)
    for color, role in _ROLES.items():
        svg = svg.replace(color, f"var(--{role})")
    return re.sub(r'style="fill: #ffffff', 'style="fill: none', svg)
