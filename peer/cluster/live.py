"""What a person sees of a running cluster: a live table in a terminal, plain lines elsewhere, and the summary at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from peer.accounts.observation import Observation
from peer.config import Config
from peer.wire.gossip_pb2 import StatusReply

BLOCKS = " ▁▂▃▄▅▆▇█"
BAR = 12
REASONS = {
    "quota": "own quota",
    "word": "another's word",
    "quorum": "quorum",
    "deadline": "time-out",
    "barrier": "all done",
}


class View(Protocol):
    """Where the progress of a run is shown."""

    def __enter__(self) -> View: ...

    def __exit__(self, *exc: object) -> None: ...

    def say(self, sentence: str) -> None: ...

    def show(self, curve: Sequence[Observation], statuses: Sequence[StatusReply | None]) -> None: ...


class PlainView:
    """One line now and then, for logs and pipes."""

    def __init__(self, console: Console, every_seconds: float = 2.0) -> None:
        self._console = console
        self._every = every_seconds
        self._next = 0.0

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def say(self, sentence: str) -> None:
        self._console.print(sentence, highlight=False, markup=False)

    def show(self, curve: Sequence[Observation], statuses: Sequence[StatusReply | None]) -> None:
        if not curve or curve[-1].seconds < self._next:
            return
        seen = curve[-1]
        self._next = seen.seconds + self._every
        idle = [s.idle_fraction for s in statuses if s is not None]
        mean_idle = f"  idle {sum(idle) / len(idle):4.0%}" if idle else ""
        self.say(
            f"{seen.seconds:7.1f} s  round {seen.rounds:6.0f}  loss {seen.loss:7.4f}  "
            f"consensus distance {seen.consensus_distance:7.4f}{mean_idle}"
        )


class LiveView:
    """A table that is redrawn four times a second."""

    def __init__(self, console: Console, config: Config) -> None:
        self._config = config
        self._sentence = ""
        self._live = Live(Text("starting ..."), console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, sentence: str) -> None:
        self._sentence = sentence
        self._live.update(Text(sentence, style="dim"))

    def show(self, curve: Sequence[Observation], statuses: Sequence[StatusReply | None]) -> None:
        self._live.update(render(self._config, curve, statuses))


def make_view(console: Console, config: Config) -> View:
    return LiveView(console, config) if console.is_terminal else PlainView(console)


def render(config: Config, curve: Sequence[Observation], statuses: Sequence[StatusReply | None]) -> RenderableType:
    """The live view at one moment."""
    return Group(_headline(config, curve), _table(config, statuses))


def describe(config: Config) -> str:
    """One line: what is being run."""
    how = "blocking (barrier)" if config.closing == "barrier" else f"non-blocking ({config.closing})"
    stragglers = f", stragglers {' '.join(config.straggler)}" if config.straggler else ""
    scenario = f", scenario {config.scenario}" if config.scenario != "none" else ""
    wire = f", {config.wire_dtype} on the wire" if config.wire_dtype not in (None, "fp32") else ""
    return f"{config.peers} peers, {config.algorithm} on a {config.topology}, {how}{wire}{scenario}{stragglers}, task {config.task}"


def _headline(config: Config, curve: Sequence[Observation]) -> Text:
    text = Text(describe(config) + "\n", style="dim")
    if curve:
        seen = curve[-1]
        text.append(f"{seen.seconds:6.1f} s  ", style="bold not dim")
        text.append("loss of the mean model ", style="not dim")
        text.append(f"{seen.loss:.4f} ", style="bold not dim")
        text.append(_sparkline([o.loss for o in curve]), style="cyan not dim")
        if config.target_loss is not None:
            text.append(f"  target {config.target_loss:g}", style="not dim")
    return text


def _sparkline(losses: Sequence[float], width: int = 40) -> str:
    """Losses on a logarithmic scale, newest at the right, as blocks."""
    finite = [math.log(loss) for loss in losses if math.isfinite(loss) and loss > 0]
    step = max(1, math.ceil(len(finite) / width))
    points = finite[::-1][::step][::-1]
    low, high = min(points, default=0.0), max(points, default=0.0)
    span = high - low or 1.0
    return "".join(BLOCKS[1 + round(7 * (point - low) / span)] for point in points)


def _table(config: Config, statuses: Sequence[StatusReply | None]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("peer", justify="right")
    for name in ("round", "batch loss", "samples/s", "finished"):
        table.add_column(name, justify="right")
    table.add_column("computing / idle")
    table.add_column("stale", justify="right")
    table.add_column("sent", justify="right")
    table.add_column("neighbours")
    for peer, status in enumerate(statuses):
        if status is None:
            table.add_row(str(peer), *["-"] * 4, Text("no answer", style="red"), "", "", "")
            continue
        rate = status.samples / status.seconds if status.seconds else 0.0
        table.add_row(
            str(peer),
            str(status.round),
            f"{status.train_loss:.4f}",
            f"{rate:.0f}",
            f"{status.finished_fraction:.0%}",
            _bar(status.idle_fraction),
            str(status.max_staleness),
            amount(status.bytes_sent),
            _neighbors(status),
        )
    return table


def _bar(idle: float) -> Text:
    """Computing share as a full bar, idle share as a light one."""
    busy = round(BAR * (1 - idle))
    bar = Text("█" * busy, style="green")
    bar.append("░" * (BAR - busy), style="yellow")
    bar.append(f" {1 - idle:4.0%}", style="dim")
    return bar


def _neighbors(status: StatusReply) -> Text:
    text = Text()
    for neighbor in status.neighbors[:6]:
        text.append(f"{neighbor.peer} ", style="" if neighbor.state == "alive" else "red strike")
    if len(status.neighbors) > 6:
        text.append(f"+{len(status.neighbors) - 6}", style="dim")
    return text


def amount(num_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def summary(report: Mapping[str, Any], target: float | None) -> Panel:
    """What a run amounts to; of one that failed, what was known until then."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim")
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")
    seconds, error = report["seconds_to_target"], report["error"]
    if error is not None:
        table.add_row("failed", "", error)
    if target is not None:
        reached = f"{seconds:.1f} s" if seconds is not None else "not reached"
        table.add_row("target loss", reached, f"to {target:g}, from the moment the last peer was ready")
    ended = "" if error is not None else f"; {report['stop_reason']}"
    table.add_row(
        "wall time", f"{report['wall_seconds']:.1f} s", f"after {report['start_seconds']:.1f} s to start{ended}"
    )
    if report["peers"]:
        _add_work(table, report)
    _add_models(table, report)
    if report["peers"]:
        _add_costs(table, report)
    style = "red" if error is not None else "green" if target is None or seconds is not None else "yellow"
    return Panel.fit(table, title="grapevine", title_align="left", border_style=style)


def _add_work(table: Table, report: Mapping[str, Any]) -> None:
    reasons = ", ".join(
        f"{n} by {REASONS.get(r, r)}" for r, n in sorted(report["rounds_by_reason"].items(), key=lambda x: -x[1])
    )
    table.add_row("rounds", f"{report['rounds']}", f"closed {reasons}")
    table.add_row(
        "samples", f"{report['samples']:,}", f"{report['finished_fraction']:.0%} of what full rounds would be"
    )


def _add_models(table: Table, report: Mapping[str, Any]) -> None:
    if report["train_loss"] is not None:
        table.add_row("train loss", f"{report['train_loss']:.4f}", "mean model, whole training set")
    if report["test_accuracy"] is not None:
        table.add_row("test accuracy", f"{report['test_accuracy']:.1%}", "mean model")
    if report["worst_peer_test_accuracy"] is not None:
        table.add_row("", f"{report['worst_peer_test_accuracy']:.1%}", "worst peer")
    if report["consensus_distance"] is not None:
        table.add_row("consensus distance", f"{report['consensus_distance']:.4f}", "between the peers' models")


def _add_costs(table: Table, report: Mapping[str, Any]) -> None:
    table.add_row("idle share", f"{report['idle_fraction']:.1%}", "of the trainers' time")
    table.add_row("staleness", f"{report['max_staleness']}", "updates at most")
    table.add_row("bytes sent", amount(report["bytes_sent"]), "by all peers")
