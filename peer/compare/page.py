"""The page of a comparison: one HTML file that needs nothing else, and the plots, the CSV and the JSON beside it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from peer.compare import drawing
from peer.compare.plots import Plot, short, write_plots
from peer.compare.results import Result
from peer.compare.tables import (
    REFERENCE,
    TIME_COLUMNS,
    Summary,
    ceiling_text,
    digits,
    factor_text,
    failures,
    remarks,
    row,
    seconds_text,
    share_text,
    spread_text,
    summarise,
    time_row,
    write_csv,
    write_json,
)
from peer.config import ConfigError
from peer.scenario import load_scenario

_DECIDED_BY_CELL = {"scenario", "algorithm", "closing", "seed"}
_SECTIONS = {
    "time": (
        "Time to target",
        "A mark is a seed, the upright bar and the number are the median over the seeds; further left is sooner.",
    ),
    "loss-seconds": (
        "Loss over time",
        "Each line is the training loss of the mean model, bold in the median seed and thin in the others; follow the thread from "
        "where a bold line ends down to its name.",
    ),
    "loss-samples": (
        "Loss over samples",
        "The same against the samples used: where lines lie together a sample teaches as much, and what parts them over time is "
        "waiting and talking.",
    ),
    "gantt": (
        "Who waits for whom",
        "Each strip is a peer in the same few seconds of the median seed, a light slit where a round begins: hatched is time lost to "
        "waiting; at the right is the share of the whole run in which the peer's trainer had nothing to do.",
    ),
    "consensus": (
        "Consensus distance",
        "How far the peers' models are from their mean, at each look; near zero means that all have the same model.",
    ),
    "bytes": (
        "Bytes per peer",
        "Each mark is a peer in the median seed, over the whole run: marks far to the right of their row's others carry more traffic.",
    ),
    "staleness": (
        "Staleness",
        "The share of chunks whose gradient was computed so many updates before it was applied; the further left, the fresher.",
    ),
}
_TERMS = {
    "algorithm": "How peers mix their models: dpsgd and matcha with their neighbours, ring-all-reduce exactly, over a ring.",
    "closing": "What ends a peer's round: first, when anybody is done; barrier, when everybody is; quorum, when a fraction of the "
    "neighbours is; deadline, after a time-out.",
    "scenario": "How slow which device is, what the network is like, and who goes away.",
    "seconds to target": "From the last peer's readiness to the first look at which the mean model's training loss was at or below "
    "the target. A run that never got there counts as infinitely long in a median.",
    "speed-up": "Median seconds to target of the same algorithm with barrier, divided by those of this method. With > in front, "
    "the barrier never got there, and the length of its runs stands for its time.",
    "samples per second": "Samples whose gradients are in updates, over all peers, by wall-clock time; beside it the ratio to the "
    "same algorithm's barrier, and what the closed form expects of that ratio where there is one.",
    "share of ceiling": "Samples per second against the sum of what the devices compute on their own, as if nobody ever waited, "
    "talked or recomputed.",
    "idle": "Share of the trainers' time in which they had nothing to do.",
    "accuracy": "Of the mean model on the test set; below it that of the worst single peer.",
    "mean model": "The mean of all peers' models; where one peer has the model (sync-sgd, async-sgd), it is the head's.",
    "staleness": "Updates between reading the parameters and applying the gradient computed at them.",
    "consensus distance": "Root of the mean squared distance of the peers' models to their mean.",
    "median seed": "The run that is the median by seconds to target; of an even number the lower one.",
}


class Markup(str):
    """HTML as it is; any other text is escaped by `element`."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: str) -> Markup:
    """<name>children</name>, all escaped that is not Markup. class_ is class, data_label is data-label."""
    spelled = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    opening = "".join(f' {key}="{html.escape(drawing.clean(value, 400))}"' for key, value in spelled.items())
    content = "".join(c if isinstance(c, Markup) else html.escape(drawing.clean(c, 400)) for c in children)
    return Markup(f"<{name}{opening}>{content}</{name}>")


def write_comparison(folder: Path, results: Sequence[Result]) -> list[Path]:
    """Write report.html, plots/, results.csv and results.json into `folder`; returns what was written. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, summaries = [row(result) for result in results], summarise(results)
    plots = write_plots(results, folder / "plots") if results else []
    write_csv(rows, folder / "results.csv")
    write_json(rows, summaries, folder / "results.json")
    page = folder / "report.html"
    partial = page.with_name("report.html.partial")
    partial.write_text(render(results, summaries, plots), encoding="utf-8")
    partial.replace(page)
    written = [path for plot in plots for path in plot.paths]
    return [page, folder / "results.csv", folder / "results.json", *written]


def render(results: Sequence[Result], summaries: Sequence[Summary], plots: Sequence[Plot]) -> str:
    """The page as text."""
    finding = headline(results, summaries)
    head = element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", f"Grapevine comparison: {finding}"),
        Markup(f"<style>\n{resources.files('peer.compare').joinpath('page.css').read_text()}</style>"),
    )
    body = element(
        "body",
        element("p", f"Grapevine comparison, {_extent(results)}", class_="kicker"),
        element("h1", finding),
        element("p", overall(summaries), class_="lead"),
        *_table_section(results, summaries),
        *(element("p", said, class_="failure") for said in failures(results)),
        *(element("p", said) for said in remarks(results, summaries)),
        *_time_section(summaries),
        *_plot_sections(plots),
        *_settings_section(results),
        element("h2", "Terms"),
        element("dl", *[element("div", element("dt", t), element("dd", d)) for t, d in _TERMS.items()], class_="terms"),
        element("footer", "The numbers behind this page are in results.csv and results.json, the plots in plots/."),
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n{body}\n</html>\n'


def headline(results: Sequence[Result], summaries: Sequence[Summary]) -> str:
    """The largest speed-up as one sentence; what is there to say without one, otherwise."""
    target = _target(results)
    rivals = [entry for entry in summaries if entry.closing != REFERENCE and entry.speed_up is not None]
    best = max(rivals, key=lambda entry: entry.speed_up or 0.0, default=None)
    if best is not None and best.speed_up is not None and best.speed_up >= 1.05:
        where = f"In scenario {_described(best.scenario, results)}, {best.label} reaches loss {target}"
        by = f"{'more than ' if best.at_least else ''}{best.speed_up:.1f}× sooner"
        return f"{where} in {seconds_text(best.seconds)}, {by} than {best.algorithm} {REFERENCE}."
    if best is not None:
        return f"No closing policy reaches loss {target} more than 5% sooner than {REFERENCE}."
    reached = [entry for entry in summaries if entry.seconds is not None]
    if reached:
        soonest = min(reached, key=lambda entry: entry.seconds or 0.0)
        where = f"In scenario {_described(soonest.scenario, results)}"
        return f"{where}, {soonest.label} reaches loss {target} in {seconds_text(soonest.seconds)}."
    return f"No method reached loss {target}." if target != "?" else "These runs had no target loss."


def overall(summaries: Sequence[Summary]) -> str:
    """Where the headline's case stands among all others, so that the best does not pass for the usual."""
    pairs = [entry.speed_up for entry in summaries if entry.closing != REFERENCE and entry.speed_up is not None]
    seeds = max((entry.seeds for entry in summaries), default=0)
    medians = f"Medians over {seeds} seeds." if seeds > 1 else "One seed: differences of a few percent may be chance."
    if len(pairs) > 1:
        spread = f"{factor_text(min(pairs))} to {factor_text(max(pairs))}"
        return f"{medians} Over all {len(pairs)} combinations with another closing than {REFERENCE}, the speed-up is {spread}."
    failed = sum(entry.failed for entry in summaries)
    missed = [entry for entry in summaries if entry.seconds is None and not entry.failed]
    told = f" {len(missed)} of {len(summaries)} methods missed the target." if missed else ""
    return f"{medians}{told}{f' {failed} runs failed; the reason stands below the table.' if failed else ''}"


def _target(results: Sequence[Result]) -> str:
    targets = {result.report["config"].get("target_loss") for result in results} - {None}
    return f"{targets.pop():g}" if len(targets) == 1 else "?"


def _described(scenario: str, results: Sequence[Result]) -> str:
    """Its name, and what its file says it is."""
    description = _description(scenario, results)
    return f"{short(scenario)} ({description})" if description else short(scenario)


def _description(scenario: str, results: Sequence[Result]) -> str:
    peers = next((r.report["config"].get("peers") for r in results if r.cell.scenario == scenario), None)
    try:
        return drawing.clean(load_scenario(scenario, peers or 1).description, 120)
    except (ConfigError, OSError, ValueError):
        return ""


def _extent(results: Sequence[Result]) -> str:
    kinds = {"in virtual time" if "simulation" in result.report else "as real processes" for result in results}
    return f"{len(results)} runs {' and '.join(sorted(kinds)) or '(none)'}"


def _table_section(results: Sequence[Result], summaries: Sequence[Summary]) -> list[Markup]:
    names = (
        "method",
        "to target",
        "min – max, s",
        "speed-up",
        "samples/s",
        "vs. barrier",
        "accuracy",
        "idle",
        "of ceiling",
    )
    lines: list[Markup] = []
    before = None
    for entry in summaries:
        if entry.scenario != before:
            description = _description(entry.scenario, results)
            named = element(
                "th",
                short(entry.scenario),
                " ",
                element("span", description),
                colspan=str(len(names)),
                scope="rowgroup",
            )
            lines.append(element("tr", named, class_="scenario"))
            before = entry.scenario
        lines.append(_line(entry, names[1:]))
    table = element(
        "table",
        element("thead", element("tr", *[element("th", name, scope="col") for name in names])),
        element("tbody", *lines),
    )
    said = f"Seconds until the mean model's training loss was at most {_target(results)}; bold where the speed-up is above 1.05."
    return [element("h2", "Results"), element("p", said), table]


def _time_section(summaries: Sequence[Summary]) -> list[Markup]:
    """The closed forms beside what was measured, and where the time went."""
    names = ("method", *TIME_COLUMNS)
    lines: list[Markup] = []
    before = None
    for entry in summaries:
        if entry.scenario != before:
            head = element(
                "th",
                short(entry.scenario),
                " ",
                element("span", ceiling_text(entry)),
                colspan=str(len(names)),
                scope="rowgroup",
            )
            lines.append(element("tr", head, class_="scenario"))
            before = entry.scenario
        cells = [
            element("td", element("span", text), data_label=name)
            for name, text in zip(TIME_COLUMNS, time_row(entry), strict=True)
        ]
        lines.append(element("tr", element("th", entry.label, scope="row"), *cells))
    table = element(
        "table",
        element("thead", element("tr", *[element("th", name, scope="col") for name in names])),
        element("tbody", *lines),
    )
    said = (
        "The ceiling is the sum of what the devices compute on their own. Gain is in samples per second over the same algorithm’s barrier, "
        "and theory is the closed form for it, where there is one. Samples is how many more were needed to the target than with a barrier: "
        "what staleness costs. Compute, wait and exchange are shares of the trainers’ time."
    )
    return [element("h2", "Where the time goes"), element("p", said), table]


def _line(entry: Summary, names: Sequence[str]) -> Markup:
    failed = [element("small", f"{entry.failed} failed")] if entry.failed else []
    expected = [element("small", f"expected {factor_text(entry.expected_speed_up)}")] if entry.expected_speed_up else []
    worst = entry.worst_peer_test_accuracy
    cells: list[tuple[str, list[Markup]]] = [
        (seconds_text(entry.seconds), failed),
        (spread_text(entry), []),
        (factor_text(entry.speed_up, at_least=entry.at_least), []),
        ("–" if entry.rate is None else digits(entry.rate), []),
        (factor_text(entry.rate_gain), expected),
        (
            share_text(entry.test_accuracy),
            [element("small", f"worst {share_text(worst)}")] if worst is not None else [],
        ),
        (share_text(entry.idle_fraction), []),
        (share_text(entry.share_of_ceiling), []),
    ]
    marks = {0: "missed" if entry.seconds is None else "", 2: "faster" if (entry.speed_up or 0) > 1.05 else ""}
    written = [
        element("td", element("span", text, *more), data_label=name, class_=marks.get(i, ""))
        for i, (name, (text, more)) in enumerate(zip(names, cells, strict=True))
    ]
    return element("tr", element("th", entry.label, scope="row"), *written)


def _plot_sections(plots: Sequence[Plot]) -> list[Markup]:
    sections: list[Markup] = []
    for kind, (title, caption) in _SECTIONS.items():
        mine = [plot for plot in plots if plot.kind == kind]
        if not mine:
            continue
        figures = [element("figure", _drawn(plot, title)) for plot in mine]
        sections += [element("h2", title), element("p", caption), element("div", *figures, class_="plots")]
    return sections


def _drawn(plot: Plot, title: str) -> Markup:
    where = f", scenario {short(plot.scenario)}" if plot.scenario is not None else ""
    return Markup(drawing.inline(plot.svg, plot.name, html.escape(title + where)))


def _settings_section(results: Sequence[Result]) -> list[Markup]:
    if not results:
        return []
    configs = [result.report["config"] for result in results]
    machines = dict.fromkeys(_machine(result) for result in results)
    facts = {
        "runs": _extent(results),
        "seeds": ", ".join(map(str, sorted({config.get("seed", 0) for config in configs}))),
        "scenarios": ", ".join(dict.fromkeys(result.cell.scenario for result in results)),
        "methods": ", ".join(dict.fromkeys(result.cell.label for result in results)),
        "machine": "; ".join(machines),
    }
    names = [name for name in configs[0] if name not in _DECIDED_BY_CELL]
    settings = [element("div", element("dt", name), element("dd", _values(name, configs))) for name in names]
    return [
        element("h2", "Settings"),
        element("p", "What all runs had in common; a setting with several values differed between runs."),
        element(
            "dl", *[part for k, v in facts.items() for part in (element("dt", k), element("dd", v))], class_="facts"
        ),
        element("dl", *settings, class_="settings"),
    ]


def _machine(result: Result) -> str:
    machine = result.report.get("machine") or {}
    named = (
        f"{machine.get('cpus', '?')} processors, Python {machine.get('python', '?')}, torch {machine.get('torch', '?')}"
    )
    return f"{named}, {machine.get('platform', '?')}"


def _values(name: str, configs: Sequence[dict[str, Any]]) -> str:
    """The one value of a setting, or all of them."""
    return " / ".join(dict.fromkeys(_spelled(config.get(name)) for config in configs))


def _spelled(value: object) -> str:
    if value is None or value == [] or value == ():
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
