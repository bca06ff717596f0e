"""What a person sees of a running cluster: a live table in a terminal, plain lines elsewhere, and the summary at the end."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from peer.cluster.table import PeersTable, Row, amount, hear, placed
from peer.config import Config
from peer.logs import event
from peer.wire.gossip_pb2 import StatusReply

if TYPE_CHECKING:
    from peer.accounts.observation import Observation

#: Peers of which the summary says how they were lost.
MOST_LOST = 3
BLOCKS = " ▁▂▃▄▅▆▇█"
log = logging.getLogger("grapevine.run")
#: What the model of a run is called where one peer has it.
HEADS = "the head's model"
REASONS = {
    "quota": "own quota",
    "word": "another's word",
    "quorum": "quorum",
    "deadline": "time-out",
    "barrier": "all done",
    "missed": "a model that did not come",
    "gradient": "a gradient that came",
    "timeout": "the safety net",
}


class View(Protocol):
    """Where the progress of a run is shown."""

    def __enter__(self) -> View: ...

    def __exit__(self, *exc: object) -> None: ...

    def say(self, sentence: str) -> None: ...

    def ready(self, addresses: Sequence[str]) -> None:
        """All peers train; where each is reached from this machine, in the order of ids."""

    def note(self, sentence: str) -> None:
        """Say what is still worth reading when the next sentence has come."""

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

    def ready(self, addresses: Sequence[str]) -> None:
        self.say(_to_watch(addresses))

    def note(self, sentence: str) -> None:
        self.say(sentence)

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


def _to_watch(addresses: Sequence[str]) -> str:
    return f"{len(addresses)} peers train; to watch them from elsewhere: grapevine top {addresses[0]}"


class JsonView:
    """The same, as lines of the log."""

    def __init__(self, every_seconds: float = 2.0) -> None:
        self._every = every_seconds
        self._next = 0.0

    def __enter__(self) -> JsonView:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def say(self, sentence: str) -> None:
        log.info("%s", sentence, extra=event("said"))

    def note(self, sentence: str) -> None:
        self.say(sentence)

    def ready(self, addresses: Sequence[str]) -> None:
        log.info("%d peers train", len(addresses), extra=event("ready", address=addresses[0], peers=len(addresses)))

    def show(self, curve: Sequence[Observation], statuses: Sequence[StatusReply | None]) -> None:
        if not curve or curve[-1].seconds < self._next:
            return
        seen = curve[-1]
        self._next = seen.seconds + self._every
        answering = [status for status in statuses if status is not None]
        idle = sum(status.idle_fraction for status in answering) / len(answering) if answering else None
        facts = event("progress", **asdict(seen), idle_fraction=idle, answering=len(answering))
        log.info("%.1f s, round %.0f, loss %.4f", seen.seconds, seen.rounds, seen.loss, extra=facts)


class LiveView:
    """A table that is redrawn four times a second."""

    def __init__(self, console: Console, config: Config) -> None:
        self._config = config
        self._rows: dict[int, Row] = {}
        self._live = Live(Text("starting ..."), console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, sentence: str) -> None:
        self._live.update(Text(sentence, style="dim"))

    def ready(self, addresses: Sequence[str]) -> None:
        self.note(_to_watch(addresses))

    def note(self, sentence: str) -> None:
        self._live.console.print(Text(sentence, style="dim"))

    def show(self, curve: Sequence[Observation], statuses: Sequence[StatusReply | None]) -> None:
        hear(self._rows, dict(enumerate(statuses)))
        self._live.update(Frame(how_far(self._config, curve), self._rows.values()))


def make_view(console: Console, config: Config) -> View:
    if config.log_format == "json":
        return JsonView()
    return LiveView(console, config) if console.is_interactive else PlainView(console)


class Frame:
    """The live view at one moment: what is run, and the table, as high as the terminal but for `spare` lines."""

    def __init__(self, head: Text, rows: Iterable[Row], spare: int = 1) -> None:
        self._head = head
        self._rows = list(rows)
        self._spare = spare

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = 0
        if console.is_interactive:
            height = console.height - len(self._head.wrap(console, options.max_width)) - self._spare
        yield self._head
        yield PeersTable(self._rows, height=max(height, 4) if height else 0)


def describe(config: Config) -> str:
    """One line: what is being run."""
    words = {"barrier": "blocking (barrier)", "none": "without rounds"}
    how = words.get(config.closing, f"non-blocking ({config.closing})")
    stragglers = f", stragglers {' '.join(config.straggler)}" if config.straggler else ""
    scenario = f", scenario {config.scenario}" if config.scenario != "none" else ""
    wire = f", {config.wire_dtype} on the wire" if config.wire_dtype not in (None, "fp32") else ""
    where = f"{config.peers} peers, {config.algorithm} {placed(config.topology)}"
    return f"{where}, {how}{wire}{scenario}{stragglers}, task {config.task}"


def headline(config: Config, curve: Sequence[Observation]) -> Text:
    """Two lines: what is being run, and how far it is."""
    return Text(describe(config) + "\n", style="dim").append_text(how_far(config, curve))


def how_far(config: Config, curve: Sequence[Observation]) -> Text:
    """One line: the loss until now."""
    text = Text(style="not dim")
    if curve:
        seen = curve[-1]
        text.append(f"{seen.seconds:6.1f} s  ", style="bold")
        text.append(f"loss of {model_called(config.algorithm)} ")
        text.append(f"{seen.loss:.4f} ", style="bold")
        text.append(_sparkline([o.loss for o in curve]), style="cyan")
        if config.target_loss is not None:
            text.append(f"  target {config.target_loss:g}")
    return text


def model_called(algorithm: str) -> str:
    """Whose model is that of the run."""
    from peer.gossip.algorithms import ALGORITHMS  # torch, which `top` has no use for

    return HEADS if ALGORITHMS[algorithm].has_head else "the mean model"


def _sparkline(losses: Sequence[float], width: int = 26) -> str:
    """Losses on a logarithmic scale, newest at the right, as blocks."""
    finite = [math.log(loss) for loss in losses if math.isfinite(loss) and loss > 0]
    step = max(1, math.ceil(len(finite) / width))
    points = finite[::-1][::step][::-1]
    low, high = min(points, default=0.0), max(points, default=0.0)
    span = high - low or 1.0
    return "".join(BLOCKS[1 + round(7 * (point - low) / span)] for point in points)


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
    if report["lost"]:
        _add_lost(table, report)
    if report["peers"]:
        _add_work(table, report)
        if report["wasted_fraction"]:
            _add_waste(table, report)
    _add_models(table, report)
    if report["peers"]:
        _add_costs(table, report)
    style = "red" if error is not None else "green" if target is None or seconds is not None else "yellow"
    return Panel.fit(table, title="grapevine", title_align="left", border_style=style)


def _add_lost(table: Table, report: Mapping[str, Any]) -> None:
    """The first few with how they ended."""
    lost = [f"peer {peer}: {how.removeprefix(f'peer {peer}: ')}" for peer, how in report["lost"].items()]
    more = len(lost) - MOST_LOST
    others = [f"and {more} other{'s' if more > 1 else ''}"] if more > 0 else []
    number = Text(f"{len(lost)} of {report['config']['peers']}", style="red")
    table.add_row("peers lost", number, Text("\n".join([*lost[:MOST_LOST], *others])))


def _add_work(table: Table, report: Mapping[str, Any]) -> None:
    table.add_row("rounds", known(report["rounds"]), f"closed {by_reason(report['rounds_by_reason'])}")
    table.add_row(
        "samples", f"{report['samples']:,}", f"{report['finished_fraction']:.0%} of what full rounds would be"
    )


def by_reason(rounds: Mapping[str, int]) -> str:
    """How many were closed why."""
    return ", ".join(f"{n:,} by {REASONS.get(why, why)}" for why, n in sorted(rounds.items(), key=lambda x: -x[1]))


def known(value: object) -> str:
    """A dash where nobody knows."""
    return "–" if value is None else str(value)


def used_alike(report: Mapping[str, Any]) -> str:
    """How unevenly the peers' samples were used, as a sentence without its end."""
    never = [str(row["peer"]) for row in report["peers"] if row["sample_share"] == 0]
    least = f"least {report['least_share']:.2f}" if not never else f"never used: peer {', '.join(never)}"
    return f"most samples of a peer in updates over its fair share; {least}"


def _add_waste(table: Table, report: Mapping[str, Any]) -> None:
    """What backup workers cost."""
    table.add_row("wasted share", f"{report['wasted_fraction']:.1%}", "of all gradients, dropped by steps without them")
    if report["sample_skew"] is not None:
        table.add_row("sample skew", f"{report['sample_skew']:.2f}", used_alike(report))


def _add_models(table: Table, report: Mapping[str, Any]) -> None:
    config = report["config"]
    called = model_called(config["algorithm"])
    of_head = [row for row in report["peers"] if row["peer"] == config["head"]]
    if called == HEADS and (not of_head or of_head[0]["consensus_distance"] is None):
        called = "workers' mean: the head died"
    if report["train_loss"] is not None:
        table.add_row("train loss", f"{report['train_loss']:.4f}", f"{called}, whole training set")
    if report["test_accuracy"] is not None:
        table.add_row("test accuracy", f"{report['test_accuracy']:.1%}", called)
    if report["worst_peer_test_accuracy"] is not None:
        table.add_row("", f"{report['worst_peer_test_accuracy']:.1%}", "worst peer")
    if report["consensus_distance"] is not None:
        table.add_row("consensus distance", f"{report['consensus_distance']:.4f}", "between the peers' models")


def _add_costs(table: Table, report: Mapping[str, Any]) -> None:
    table.add_row("idle share", f"{report['idle_fraction']:.1%}", "of the trainers' time")
    table.add_row("staleness", known(report["max_staleness"]), "updates at most")
    table.add_row("bytes sent", amount(report["bytes_sent"]), "by all peers")
