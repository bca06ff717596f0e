"""Strips of what every peer did: computing, waiting for others, exchanging. One panel a closing policy, on one time axis."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from peer.compare import drawing
from peer.compare.drawing import COMPUTING, EXCHANGING, FONT_SIZE, HATCH, MUTED, PAPER, WAITING, WIDTH_POINTS
from peer.compare.results import Result

ROUNDS = 4
#: More would be a wall; the heading says so.
MOST_PEERS = 8
STRIP = 13.0
LEFT, RIGHT = 48.0, 46.0
_KINDS = ((COMPUTING, ""), (WAITING, "/////"), (EXCHANGING, ""))

Strip = tuple[str, Sequence[Mapping[str, Any]]]


def gantt(title: str, methods: Sequence[tuple[str, Result]]) -> Figure | None:
    """methods: label and the run to show. None if no run has a timeline. The window begins with the third round of the slowest and
    lasts ROUNDS of its rounds."""
    strips = [(label, _with_timeline(result)) for label, result in methods]
    strips = [(label, peers) for label, peers in strips if peers]
    if not strips:
        return None
    begin, end = _window([peers for _, peers in strips])
    heights = [STRIP * len(peers) for _, peers in strips]
    figure = drawing.make_figure(44 + sum(heights) + 24 * len(strips) + 34)
    most = max(len(result.report.get("peers") or ()) for _, result in methods)
    drawing.heading(figure, title if most <= MOST_PEERS else f"{title}, {MOST_PEERS} of {most} peers")
    _key(figure)
    top = 44.0
    for (label, peers), height in zip(strips, heights, strict=True):
        drawing.heading(figure, label, top + 4, LEFT, bold=False)
        axes = drawing.place(figure, LEFT, top + 20, WIDTH_POINTS - LEFT - RIGHT, height)
        _panel(axes, peers, begin, end)
        top += height + 24
    axes.tick_params(labelbottom=True, bottom=True)
    axes.set_xlabel("seconds since the start")
    drawing.heading(figure, "idle", 48, WIDTH_POINTS - 29, bold=False)
    return figure


def _with_timeline(result: Result) -> list[Mapping[str, Any]]:
    return [row for row in result.report.get("peers") or () if row.get("timeline")][:MOST_PEERS]


def _window(runs: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[float, float]:
    """Seconds from and to; the slowest run is that with the longest median round."""

    def length(peers: Sequence[Mapping[str, Any]]) -> float:
        return statistics.median(float(end - begin) for row in peers for begin, _, _, end in row["timeline"])

    slowest = max(runs, key=length)
    rounds = slowest[0]["timeline"]
    begin = rounds[2][0] if len(rounds) > ROUNDS + 2 else rounds[0][0]
    return begin, begin + max(ROUNDS * length(slowest), 1e-9)


def _panel(axes: Axes, peers: Sequence[Mapping[str, Any]], begin: float, end: float) -> None:
    for i, row in enumerate(peers):
        y = STRIP * (i + 0.5)
        for started, computed, closed, ended in row["timeline"]:
            if ended < begin or started > end:
                continue
            _round(axes, y, (started, computed, closed, ended))
        idle = row.get("idle_fraction")
        axes.annotate(
            "–" if idle is None else f"{idle:.0%}",
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(RIGHT - 8, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=FONT_SIZE - 1,
            color=MUTED,
        )
    axes.set_xlim(begin, end)
    axes.set_ylim(STRIP * len(peers), 0)
    axes.set_yticks([STRIP * (i + 0.5) for i in range(len(peers))], [f"peer {row['peer']}" for row in peers])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)


def _round(axes: Axes, y: float, times: tuple[float, float, float, float]) -> None:
    """Three boxes, and a slit where the round begins."""
    for (color, hatch), start, stop in zip(_KINDS, times, times[1:], strict=False):
        if stop > start:
            face: dict[str, Any] = {
                "facecolor": color,
                "edgecolor": HATCH if hatch else "none",
                "hatch": hatch,
                "linewidth": 0,
            }
            axes.add_patch(Rectangle((start, y - STRIP * 0.38), stop - start, STRIP * 0.76, **face))
    axes.plot([times[0]] * 2, [y - STRIP * 0.38, y + STRIP * 0.38], color=PAPER, linewidth=0.9, solid_capstyle="butt")


def _key(figure: Figure) -> None:
    left = LEFT
    full = figure.get_figheight() * 72
    for (color, hatch), name in zip(_KINDS, ("computing", "waiting", "exchanging"), strict=True):
        face: dict[str, Any] = {
            "facecolor": color,
            "edgecolor": HATCH if hatch else "none",
            "hatch": hatch,
            "linewidth": 0,
        }
        box = Rectangle(
            (left / WIDTH_POINTS, 1 - 34 / full), 14 / WIDTH_POINTS, 9 / full, transform=figure.transFigure, **face
        )
        figure.add_artist(box)
        drawing.heading(figure, name, 24, left + 18, bold=False)
        left += 96
