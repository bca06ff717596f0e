"""The plots of a comparison, one figure a question and scenario, all of one width so that a page can put them side by side."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from peer.cluster.table import amount
from peer.compare import drawing
from peer.compare.drawing import FONT_SIZE, GRID, INK, PAPER, WIDTH_POINTS
from peer.compare.gantt import gantt
from peer.compare.results import Result
from peer.compare.tables import digits, grouped, median_run, seconds_text, seconds_to_target

ROW = 14.0
LEFT, RIGHT = 44.0, 12.0
GUTTER = 130.0
MOST_POINTS = 600
MOST_BARS = 8


@dataclass(frozen=True, slots=True)
class Plot:
    """A written figure. kind: one of KINDS; scenario: None if it shows all."""

    kind: str
    name: str
    title: str
    scenario: str | None
    paths: list[Path]
    svg: str


@dataclass(slots=True)
class Method:
    """The runs of one algorithm and closing in one scenario, and how they are drawn. typical: the median seed."""

    label: str
    runs: Sequence[Result]
    color: str
    marker: str
    dashes: Any
    typical: Result = field(init=False)

    def __post_init__(self) -> None:
        self.typical = median_run(self.runs)


Draw = Callable[[str, Sequence[Method]], Figure | None]
KINDS = ("time", "loss-seconds", "loss-samples", "gantt", "consensus", "bytes", "staleness")


def write_plots(results: Sequence[Result], folder: Path) -> list[Plot]:
    """All plots that these results have data for, as SVG and PNG in `folder`. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    algorithms = list(dict.fromkeys(result.cell.algorithm for result in results))
    scenarios = {
        scenario: [_method(runs, algorithms) for runs in methods.values()]
        for scenario, methods in grouped(results).items()
    }
    written = [_write("time", "time-to-target", None, folder, lambda: time_to_target(scenarios))]
    slugs = _slugs(list(scenarios))
    for kind, draw in _PER_SCENARIO.items():
        for scenario, methods in scenarios.items():
            for suffix, part in _parts(kind, methods):
                name = f"{kind}-{slugs[scenario]}{suffix}"
                written.append(_write(kind, name, scenario, folder, lambda d=draw, s=scenario, p=part: d(s, p)))  # type: ignore[misc]
    return [plot for plot in written if plot is not None]


def _parts(kind: str, methods: Sequence[Method]) -> Iterator[tuple[str, Sequence[Method]]]:
    """A Gantt strip an algorithm, one figure for all else."""
    algorithms = list(dict.fromkeys(method.typical.cell.algorithm for method in methods))
    if kind != "gantt":
        yield "", methods
        return
    for algorithm in algorithms:
        yield f"-{_slug(algorithm)}", [m for m in methods if m.typical.cell.algorithm == algorithm]


def _write(kind: str, name: str, scenario: str | None, folder: Path, make: Callable[[], Figure | None]) -> Plot | None:
    with drawing.style(name):
        figure = make()
        if figure is None:
            return None
        paths, svg = drawing.save(figure, name, folder)
    return Plot(kind, name, f"{kind} {scenario or ''}".strip(), scenario, paths, svg)


def _method(runs: Sequence[Result], algorithms: Sequence[str]) -> Method:
    cell = runs[0].cell
    return Method(
        label=drawing.clean(cell.label, 26),
        runs=runs,
        color=drawing.color_of(cell.algorithm, algorithms),
        marker=drawing.marker_of(cell.algorithm, algorithms),
        dashes=drawing.DASHES.get(cell.closing, "-"),
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", Path(text).stem.lower()).strip("-")[:40] or "scenario"


def _slugs(scenarios: Sequence[str]) -> dict[str, str]:
    """A file name for each, no two alike."""
    found: dict[str, str] = {}
    for scenario in scenarios:
        slug, n = _slug(scenario), 2
        while slug in found.values():
            slug, n = f"{_slug(scenario)}-{n}", n + 1
        found[scenario] = slug
    return found


def short(scenario: str) -> str:
    """The name of a scenario in headings."""
    return drawing.clean(Path(scenario).stem or scenario, 40)


# Lines: a curve a run, and below the axes a ladder of labels, each hanging from the end of its line.


def loss_seconds(scenario: str, methods: Sequence[Method]) -> Figure | None:
    """Loss over time."""
    return _lines(scenario, methods, "seconds", "loss", ("training loss", "seconds"))


def loss_samples(scenario: str, methods: Sequence[Method]) -> Figure | None:
    """Loss over samples."""
    return _lines(scenario, methods, "samples", "loss", ("training loss", "samples in updates"))


def consensus(scenario: str, methods: Sequence[Method]) -> Figure | None:
    """Distance between the peers' models over time."""
    return _lines(scenario, methods, "seconds", "consensus_distance", ("consensus distance", "seconds"))


def _points(result: Result, x: str, y: str) -> list[tuple[float, float]]:
    """What is known of a curve, thinned to what can be seen."""
    points = [
        (float(seen[x]), float(seen[y]))
        for seen in result.report.get("curve") or ()
        if seen.get(x) is not None and seen.get(y) is not None and math.isfinite(seen[x]) and math.isfinite(seen[y])
    ]
    step = -(-len(points) // MOST_POINTS) if points else 1
    return points[:-1:step] + points[-1:]


def _lines(scenario: str, methods: Sequence[Method], x: str, y: str, names: tuple[str, str]) -> Figure | None:
    curves = {id(run): _points(run, x, y) for method in methods for run in method.runs}
    drawn = [method for method in methods if curves[id(method.typical)]]
    if not drawn:
        return None
    ladder = ROW * len(drawn) + 8
    figure = drawing.make_figure(40 + 190 + ladder + 38)
    drawing.heading(figure, short(scenario))
    target = methods[0].typical.report["config"].get("target_loss") if y == "loss" else None
    drawing.heading(
        figure, names[0] if target is None else f"{names[0]}; the line is the target, {target:g}", 21, bold=False
    )
    axes = drawing.place(figure, LEFT, 40, WIDTH_POINTS - LEFT - RIGHT, 190)
    labels = drawing.place(figure, LEFT, 230, WIDTH_POINTS - LEFT - RIGHT, ladder)
    for method in drawn:
        _curve(axes, method, curves)
    furthest = max(points[-1][0] for points in curves.values() if points) or 1.0
    for each in (axes, labels):
        each.set_xlim(0, furthest * 1.03)
    _loss_axis(axes, target) if y == "loss" else axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False)
    ends = {id(method): curves[id(method.typical)][-1] for method in drawn}
    _ladder(axes, labels, drawn, ends, lambda method: _said(method, x, y, ends[id(method)]))
    _x_axis(labels, names[1])
    return figure


def _curve(axes: Axes, method: Method, curves: dict[int, list[tuple[float, float]]]) -> None:
    for run in method.runs:
        if (points := curves[id(run)]) and run is not method.typical:
            axes.plot(
                *zip(*points, strict=True), color=method.color, linestyle=method.dashes, linewidth=0.7, alpha=0.55
            )
    points = curves[id(method.typical)]
    axes.plot(*zip(*points, strict=True), color=method.color, linestyle=method.dashes, linewidth=1.9)
    axes.plot(*points[-1], color=method.color, marker=method.marker, markersize=5.5, clip_on=False, zorder=5)


def _said(method: Method, x: str, y: str, end: tuple[float, float]) -> str:
    """What the label of a line adds to its name."""
    if y != "loss":
        return f"{method.label}, ends at {end[1]:.3g}"
    if not math.isfinite(seconds_to_target(method.typical)):
        return f"{method.label}, {end[1]:.3g} at the end"
    return f"{method.label}, {seconds_text(end[0]) if x == 'seconds' else f'{end[0]:,.0f}'}"


def _loss_axis(axes: Axes, target: float | None) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    if target is None:
        return
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, target * 0.85), high)
    axes.axhline(target, color=INK, linewidth=0.8)


def _ladder(
    axes: Axes,
    labels: Axes,
    methods: Sequence[Method],
    ends: dict[int, tuple[float, float]],
    say: Callable[[Method], str],
) -> None:
    """A label a line, each on its own rung, hanging from the end of its line. Labels that have room go to the right of their
    thread, the latest on top; below them those that go to the left, the earliest on top: so threads cross no labels."""
    furthest = labels.get_xlim()[1]
    width = WIDTH_POINTS - LEFT - RIGHT

    def fits(method: Method) -> bool:
        return ends[id(method)][0] / furthest * width + len(say(method)) * FONT_SIZE * 0.56 + 8 < width

    ordered = sorted(methods, key=lambda method: ends[id(method)][0])
    rungs = [m for m in reversed(ordered) if fits(m)] + [m for m in ordered if not fits(m)]
    labels.set_ylim(-len(rungs), 0.5)
    for rung, method in enumerate(rungs):
        x, y = ends[id(method)]
        thread: dict[str, Any] = {"color": method.color, "linewidth": 0.8, "zorder": 1.5}
        axes.plot([x, x], [axes.get_ylim()[0], y], **thread)
        labels.plot([x, x], [0.5, -rung - 0.4], clip_on=False, **thread)
        labels.annotate(
            say(method),
            (x, -rung - 0.4),
            xytext=(4 if fits(method) else -4, 0),
            textcoords="offset points",
            ha="left" if fits(method) else "right",
            va="center",
            fontsize=FONT_SIZE - 0.5,
            color=INK,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},
        )


def _x_axis(axes: Axes, name: str) -> None:
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel(name)


# Rows: a method each, its name at the left.


def time_to_target(scenarios: dict[str, list[Method]]) -> Figure | None:
    """A dot a seed, a bar at the median, and the median as a number; grouped by scenario."""
    times = [seconds_to_target(run) for methods in scenarios.values() for m in methods for run in m.runs]
    known = [seconds for seconds in times if math.isfinite(seconds)]
    if not known:
        return None
    rows = sum(len(methods) for methods in scenarios.values())
    height = 17.0 * rows + 24.0 * len(scenarios)
    figure = drawing.make_figure(8 + height + 40)
    axes = drawing.place(figure, GUTTER, 8, WIDTH_POINTS - GUTTER - 62, height)
    axes.set_ylim(height, 0)
    axes.set_xlim(0, max(known) * 1.04)
    y = 0.0
    for scenario, methods in scenarios.items():
        axes.text(2 - GUTTER, y + 15, short(scenario), **_points_of(axes), fontweight="bold", va="center")
        y += 24
        for method in methods:
            _time_row(axes, y + 8, method)
            y += 17
    axes.grid(axis="x")
    _x_axis(axes, "seconds to target, less is better")
    return figure


def _points_of(axes: Axes) -> dict[str, Any]:
    """x in points from the axes' left edge, y in data."""
    from matplotlib.transforms import Affine2D, blended_transform_factory

    figure = axes.figure
    assert isinstance(figure, Figure)
    edge = (
        Affine2D().scale(1 / 72).translate(axes.get_position().x0 * figure.get_figwidth(), 0) + figure.dpi_scale_trans
    )
    return {"transform": blended_transform_factory(edge, axes.transData)}


def _time_row(axes: Axes, y: float, method: Method) -> None:
    times = [seconds_to_target(run) for run in method.runs]
    known = [seconds for seconds in times if math.isfinite(seconds)]
    median = statistics.median(times)
    axes.plot(known, [y] * len(known), marker=method.marker, linestyle="", color=method.color, markersize=5, alpha=0.8)
    if math.isfinite(median):
        axes.plot([median] * 2, [y - 7, y + 7], color=INK, linewidth=1.6, zorder=1.5)
    axes.text(10 - GUTTER, y, method.label, **_points_of(axes), va="center", fontsize=FONT_SIZE - 0.5)
    width = WIDTH_POINTS - GUTTER - 62
    said = f"{digits(median)} s" if math.isfinite(median) else f"{len(known)} of {len(times)}"
    axes.text(width + 58, y, said, **_points_of(axes), va="center", ha="right", fontsize=FONT_SIZE - 0.5)


def bytes_per_peer(scenario: str, methods: Sequence[Method]) -> Figure | None:
    """A full mark for what a peer sent, a hollow one for what it received, in the median seed."""
    peers = {id(method): method.typical.report.get("peers") or [] for method in methods}
    most = max((row[n] for rows in peers.values() for row in rows for n in ("bytes_sent", "bytes_received")), default=0)
    if not most:
        return None
    height = 28.0 * len(methods)
    figure = drawing.make_figure(42 + height + 40)
    drawing.heading(figure, short(scenario))
    drawing.heading(figure, "full: sent, hollow: received; at the right the mean sent", 21, bold=False)
    axes = drawing.place(figure, GUTTER, 42, WIDTH_POINTS - GUTTER - 62, height)
    axes.set_ylim(height, 0)
    axes.set_xlim(0, most / 1e6 * 1.04)
    for i, method in enumerate(methods):
        rows, y = peers[id(method)], 28.0 * i + 14
        axes.axhline(y, color=GRID, linewidth=0.7)
        for name, shift, face in (("bytes_sent", -5, method.color), ("bytes_received", 5, PAPER)):
            points = [row[name] / 1e6 for row in rows]
            mark: dict[str, Any] = {"marker": method.marker, "color": method.color, "markerfacecolor": face}
            axes.plot(points, [y + shift] * len(points), linestyle="", markersize=5, **mark)
        axes.text(2 - GUTTER, y, method.label, **_points_of(axes), va="center", fontsize=FONT_SIZE - 0.5)
        mean = amount(statistics.fmean(row["bytes_sent"] for row in rows)) if rows else "unknown"
        axes.text(
            WIDTH_POINTS - GUTTER - 4, y, mean, **_points_of(axes), va="center", ha="right", fontsize=FONT_SIZE - 0.5
        )
    _x_axis(axes, "MB per peer, whole run")
    return figure


def staleness(scenario: str, methods: Sequence[Method]) -> Figure | None:
    """Bars: share of the chunks by how many updates old they were."""
    counts = {id(method): _staleness(method.typical) for method in methods}
    drawn = [method for method in methods if counts[id(method)]]
    if not drawn:
        return None
    last = max(max(count) for count in counts.values() if count)
    bars = min(max(last, 1), MOST_BARS - 1)
    figure = drawing.make_figure(42 + 42.0 * len(drawn) + 38)
    drawing.heading(figure, short(scenario))
    drawing.heading(figure, "share of chunks", 21, bold=False)
    for i, method in enumerate(drawn):
        axes = drawing.place(figure, GUTTER, 42 + 42.0 * i + 14, WIDTH_POINTS - GUTTER - RIGHT, 26)
        _bars(axes, method, counts[id(method)], bars)
        if i == len(drawn) - 1:
            axes.tick_params(labelbottom=True)
            names = [str(s) for s in range(bars)] + [f"{bars}+" if last > bars else str(bars)]
            axes.set_xticks(range(bars + 1), names)
            axes.set_xlabel("staleness, updates")
    return figure


def _staleness(result: Result) -> Counter[int]:
    counts: Counter[int] = Counter()
    for row in result.report.get("peers") or ():
        for stale, chunks in (row.get("staleness") or {}).items():
            counts[int(stale)] += int(chunks)
    return +counts


def _bars(axes: Axes, method: Method, counts: Counter[int], bars: int) -> None:
    shares = [counts[s] / counts.total() for s in range(bars)]
    shares.append(max(1.0 - sum(shares), 0.0) if bars else 0.0)
    axes.bar(range(bars + 1), shares, width=0.7, color=method.color)
    axes.set_xlim(-0.5, bars + 0.5)
    axes.set_ylim(0, 1)
    axes.set_xticks(range(bars + 1))
    axes.tick_params(labelbottom=False, bottom=False)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    for s, share in enumerate(shares):
        said = "" if share < 1e-9 else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "<0.1%"
        axes.annotate(
            said, (s, share), xytext=(0, 1.5), textcoords="offset points", ha="center", fontsize=FONT_SIZE - 1.5
        )
    axes.text(2 - GUTTER, 0.3, method.label, **_points_of(axes), va="center", fontsize=FONT_SIZE - 0.5)


def strips(scenario: str, methods: Sequence[Method]) -> Figure | None:
    """What every peer did in a few rounds of the median seed."""
    return gantt(
        f"{short(scenario)}, {drawing.clean(methods[0].typical.cell.algorithm)}",
        [(method.label, method.typical) for method in methods],
    )


_PER_SCENARIO: dict[str, Draw] = {
    "loss-seconds": loss_seconds,
    "loss-samples": loss_samples,
    "gantt": strips,
    "consensus": consensus,
    "bytes": bytes_per_peer,
    "staleness": staleness,
}
