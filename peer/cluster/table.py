"""The table of a running cluster: a row per peer, as `grapevine up`, `compare` and `top` show it.

What a row says of time is of the last SECONDS of its peer's training: statuses tell totals, of which two make a rate.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from peer.transport.states import state_name
from peer.wire.gossip_pb2 import State, StatusReply

SECONDS = 5.0
#: What the rows are of, once there are two statuses of a peer.
LATELY = f"of the last {SECONDS:g} s"
#: At most so many statuses of a peer are kept.
KEPT = 64


class Share(NamedTuple):
    """What a peer's time goes into: its field in the status, and how a bar shows it."""

    name: str
    glyph: str
    plain: str
    style: str

    @property
    def field(self) -> str:
        return f"seconds_{self.name}"


#: Told apart without colours too. plain: where the terminal has no block characters.
SHARES = (
    Share("computing", "█", "#", "green"),
    Share("mixing", "▓", "%", "magenta"),
    Share("exchanging", "▒", "=", "cyan"),
    Share("waiting", "░", ".", "yellow"),
)


class Now(NamedTuple):
    """What a peer does now: samples a second, its time by SHARES, which add up to 1, or to 0 before it trains, and rounds a second."""

    samples: float
    shares: tuple[float, ...]
    rounds: float = 0.0


NOTHING = Now(0.0, (0.0,) * len(SHARES))


@dataclass(slots=True)
class Row:
    """One peer. status: its newest; None if it has never answered. answers: to the last question. about: why it does not."""

    peer: int
    status: StatusReply | None = None
    answers: bool = False
    about: str = "no answer"
    now: Now = NOTHING
    _past: deque[StatusReply] = field(default_factory=lambda: deque(maxlen=KEPT))

    def heard(self, status: StatusReply | None) -> None:
        """The answer to the last question."""
        self.answers = status is not None
        if status is None:
            return
        if self.status is not None and (status.pid != self.status.pid or status.seconds < self.status.seconds):
            self._past.clear()  # it began anew
        if self._past and status.seconds == self._past[-1].seconds:
            self._past.pop()
        while len(self._past) > 1 and status.seconds - self._past[1].seconds >= SECONDS:
            self._past.popleft()
        self._past.append(status)
        self.status, self.now = status, self._rates(status)

    def _rates(self, new: StatusReply) -> Now:
        """Over the last SECONDS of training, or from its beginning."""
        old = self._past[0] if len(self._past) > 1 else StatusReply()
        seconds = new.seconds - old.seconds
        if seconds <= 0:  # training is over: what it was on the whole
            old, seconds = StatusReply(), new.seconds
        spent = [max(getattr(new, share.field) - getattr(old, share.field), 0.0) for share in SHARES]
        total = sum(spent)
        return Now(
            (new.samples - old.samples) / seconds if seconds > 0 else 0.0,
            tuple(part / total if total else 0.0 for part in spent),
            (new.round - old.round) / seconds if seconds > 0 else 0.0,
        )

    @property
    def is_head(self) -> bool:
        """Whether it has the model of the run."""
        status = self.status
        return status is not None and status.HasField("head") and status.head == self.peer

    @property
    def only_steps(self) -> bool:
        """Whether it is a head that computes nothing itself."""
        return self.is_head and self.status is not None and not self.status.samples_started


def hear(rows: dict[int, Row], answers: Mapping[int, StatusReply | None]) -> None:
    """What those said, or did not, who were asked."""
    for peer, status in answers.items():
        rows.setdefault(peer, Row(peer)).heard(status)


class PeersTable:
    """Rows as a table that fits where it is shown. height: at most so many lines; 0: as many as there are rows. span: the time that rates
    and shares are of."""

    def __init__(self, rows: Iterable[Row], height: int = 0, span: str = LATELY) -> None:
        self._rows = sorted(rows, key=lambda row: row.peer)
        self._height = height
        self._span = span

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        plain = options.ascii_only
        shown = self._rows
        if self._height and len(shown) + 2 > self._height:
            shown = shown[: max(self._height - 3, 1)]
        yield _table(shown, _layout(options.max_width, marked=any(row.is_head for row in shown)), plain=plain)
        if len(shown) < len(self._rows):
            yield Text(f" and {len(self._rows) - len(shown)} more peers", style="dim", no_wrap=True)
        yield _legend(self._span, plain=plain)


class Layout(NamedTuple):
    """columns; cells of the bar; characters for neighbours, if no column is wider than LAYOUTS reckons with."""

    columns: Sequence[str]
    bar: int
    neighbors: int
    mark: str = ""  # before the id of a head


_ALL = ("peer", "round", "batch loss", "samples/s", "finished", "time", "stale", "sent", "neighbours")
_LEFT = ("time", "neighbours")
#: By the least width that has room for it: for a million rounds, and 99,999 samples a second.
LAYOUTS = {
    110: Layout(_ALL, 24, 14),
    80: Layout(("peer", "round", "batch loss", "samples/s", "time", "stale", "neighbours"), 12, 15),
    58: Layout(("peer", "round", "batch loss", "samples/s", "time"), 12, 0),
    0: Layout(("peer", "round", "batch loss", "time"), 6, 0),
}


def _layout(width: int, *, marked: bool) -> Layout:
    """marked: there is a head, whose mark needs room as well."""
    mark = HEAD if marked and width >= LEAST_MARKED else ""
    width -= len(mark)
    least = next(least for least in LAYOUTS if width >= least)
    return LAYOUTS[least]._replace(neighbors=LAYOUTS[least].neighbors + width - least, mark=mark)


#: Stands before the id of a head.
HEAD = "head "
#: Narrower tables have no room for that.
LEAST_MARKED = 45


def _table(rows: Sequence[Row], layout: Layout, *, plain: bool) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in layout.columns:
        header = "time, % computing" if name == "time" and layout.bar >= 12 else name
        table.add_column(header, justify="left" if name in _LEFT else "right", no_wrap=True)
    for row in rows:
        cells = _cells(row, layout, plain=plain)
        table.add_row(*(cells.get(name, "-") for name in layout.columns), style="" if row.answers else "dim")
    return table


def _cells(row: Row, layout: Layout, *, plain: bool) -> dict[str, str | Text]:
    """What is known of a peer, by column."""
    mark = layout.mark if row.is_head else ""
    cells: dict[str, str | Text] = {"peer": f"{mark}{row.peer}", "time": _time(row, layout.bar, plain=plain)}
    status = row.status
    if status is not None:
        cells |= {
            "round": str(status.round),
            "batch loss": number(status.train_loss),
            "samples/s": "-" if row.only_steps else _rate(row.now.samples),
            "finished": "-" if row.only_steps else f"{status.finished_fraction:.0%}",
            "stale": str(status.max_staleness),
            "sent": amount(status.bytes_sent),
            "neighbours": _neighbors(status, layout.neighbors),
        }
    return cells


def _time(row: Row, width: int, *, plain: bool) -> Text:
    """What the peer's time goes into, as a bar; what it does in a word, if it does not train."""
    if not row.answers or row.status is None:
        return Text(row.about, style="red not dim")
    if row.status.state != State.STATE_TRAINING:
        return Text(state_name(row.status.state), style="dim")
    if row.only_steps:
        return Text(f"{_rate(row.now.rounds)} steps/s" if width >= 12 else "steps", style="green")
    bar = Text()
    for share, cells in zip(SHARES, _parts(row.now.shares, width), strict=True):
        bar.append((share.plain if plain else share.glyph) * cells, style=share.style)
    bar.append(" " * (width - len(bar)) + f" {row.now.shares[0]:4.0%}", style="dim")
    return bar


def _parts(shares: Sequence[float], width: int) -> list[int]:
    """Whole cells in proportion to shares that add up to 1; their ends are rounded, so that they fill the width."""
    ends = [round(width * sum(shares[: i + 1])) for i in range(len(shares))]
    return [end - before for before, end in zip([0, *ends], ends, strict=False)]


def _legend(span: str, *, plain: bool) -> Text:
    text = Text(" ", no_wrap=True, overflow="ellipsis")
    for share in SHARES:
        text.append(share.plain if plain else share.glyph, style=share.style)
        text.append(f" {share.name}   ", style="dim")
    text.append(span, style="dim")
    return text


def _neighbors(status: StatusReply, room: int) -> Text:
    """Their ids, as many as fit; struck out who is not alive."""
    text = Text()
    for i, neighbor in enumerate(status.neighbors):
        rest = f"+{len(status.neighbors) - i}"
        if len(text) + len(str(neighbor.peer)) + 1 + len(rest) > room:
            return text.append(rest, style="dim")
        text.append(f"{neighbor.peer}", style="" if neighbor.state == "alive" else "red strike")
        text.append(" ")
    return text


def placed(topology: str) -> str:
    """Where peers are, by its name: on what is a thing, or on what is called so."""
    return f"on a {topology}" if topology in ("ring", "torus", "star") else f"on topology {topology}"


def number(value: float) -> str:
    """A loss for people."""
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"


def _rate(samples: float) -> str:
    return f"{samples:.0f}" if samples >= 10 or not samples else f"{samples:.1f}"


def amount(num_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
