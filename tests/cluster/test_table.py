"""The table of a running cluster: what it says of a peer's time, and that it fits where it is shown."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console
from rich.text import Text

from peer.cluster.live import Frame
from peer.cluster.table import HEAD, LAYOUTS, LEAST_MARKED, SECONDS, SHARES, PeersTable, Row, amount, hear, number
from peer.wire.gossip_pb2 import Neighbor, State, StatusReply


def status(peer: int = 0, seconds: float = 10.0, **values: object) -> StatusReply:
    """Of a peer that computes half of its time, waits 3/10, exchanges 2/10."""
    reply = StatusReply(peer=peer, state=State.STATE_TRAINING, pid=7, seconds=seconds, samples=int(100 * seconds))
    reply.seconds_computing, reply.seconds_waiting, reply.seconds_exchanging = (
        part * seconds for part in (0.5, 0.3, 0.2)
    )
    reply.round, reply.train_loss, reply.bytes_sent = int(10 * seconds), 0.25, int(1e6 * seconds)
    for name, value in values.items():
        setattr(reply, name, value)
    return reply


def drawn(rows: dict[int, Row], width: int, height: int = 0, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(width=width, file=file, force_terminal=True, color_system=None)
    console.print(PeersTable(rows.values(), height))
    file.seek(0)
    return file.read().splitlines()


def test_shares_and_rate_are_of_the_last_seconds() -> None:
    row = Row(0)
    row.heard(status(seconds=10.0))
    assert row.now.samples == 100
    assert row.now.shares == pytest.approx((0.5, 0.0, 0.2, 0.3)), "from its beginning, as long as there is one status"
    for i in range(1, 41):  # four a second: nothing is computed any more
        waiting = status(0, 10 + i / 4, samples=1000, seconds_computing=5.0, seconds_exchanging=2.0)
        waiting.seconds_waiting = 3.0 + i / 4
        row.heard(waiting)
        row.heard(row.status)  # the same answer again is no news
    assert row.now.samples == 0
    assert row.now.shares == pytest.approx((0.0, 0.0, 0.0, 1.0))
    assert len(row._past) <= 4 * SECONDS + 2


def test_a_peer_that_began_anew_is_not_compared_with_its_past() -> None:
    for again in (status(seconds=2.0, pid=8), status(seconds=2.0), status(seconds=20.0, samples=40, pid=8)):
        row = Row(0)
        row.heard(status(seconds=10.0))
        row.heard(status(seconds=11.0))
        row.heard(again)
        assert row.now.samples == again.samples / again.seconds
        assert sum(row.now.shares) == pytest.approx(1.0)


def test_who_does_not_answer_keeps_what_is_known() -> None:
    rows: dict[int, Row] = {}
    hear(rows, {0: status(0), 1: status(1), 2: None})
    hear(rows, {0: status(0, 11.0), 1: None, 2: None})
    zero, one, two = drawn(rows, 140)[1:4]
    assert "no answer" in one
    assert "no answer" in two
    assert "no answer" not in zero
    assert one.split()[:4] == ["1", "100", "0.2500", "100"]
    assert two.split()[:4] == ["2", "-", "-", "-"]


def test_a_head_is_marked_and_one_that_only_steps_is_not_as_if_it_were_dead() -> None:
    """Peer 1 is the head: it takes 25 steps a second and computes nothing, so it has no time of a trainer."""
    rows: dict[int, Row] = {}
    for seconds in (10.0, 14.0):
        only_steps = StatusReply(
            peer=1, head=1, pid=7, state=State.STATE_TRAINING, seconds=seconds, train_loss=math.nan
        )
        only_steps.round = int(25 * seconds)
        hear(rows, {0: status(0, seconds, head=1), 1: only_steps})
    for width in (64, 80, 110):
        worker, head = drawn(rows, width)[1:3]
        assert head.split()[:5] == ["head", "1", "350", "-", "-"]
        assert "25 steps/s" in head
        assert "0%" not in head
        assert worker.split()[:2] == ["0", "140"]
    computing = {0: Row(0)}
    computing[0].heard(status(0, head=0, samples_started=1000))
    assert drawn(computing, 80)[1].split()[:2] == ["head", "0"]
    assert "50%" in drawn(computing, 80)[1]
    nobodys = {0: Row(0)}
    nobodys[0].heard(status(0))
    assert "head" not in "".join(drawn(nobodys, 110))


@pytest.mark.parametrize("head", [None, 101])
@pytest.mark.parametrize("width", [40, 45, 58, 79, 80, 109, 110, 140])
def test_it_fits(width: int, head: int | None) -> None:
    rows: dict[int, Row] = {}
    big = {"round": 999_999, "train_loss": 0.1234, "max_staleness": 99, "bytes_sent": 123_456_789_000}
    for peer in range(100, 104):
        reply = status(peer, 1000.0, samples=99_999_000, finished_fraction=1.0, **big)
        if head is not None:
            reply.head = head
        reply.neighbors.extend(Neighbor(peer=j, state="alive") for j in range(100, 120))
        hear(rows, {peer: reply})
    lines = drawn(rows, width)
    assert all(len(text.rstrip()) <= width for text in lines)
    assert "…" not in "".join(lines[:-1]), "something was cut"
    room = width - len(HEAD) * (head is not None and width >= LEAST_MARKED)
    columns = next(layout.columns for least, layout in LAYOUTS.items() if room >= least)
    for name in columns:
        assert name in lines[0]
    assert ("head 101" in lines[2]) == (head is not None and width >= LEAST_MARKED)
    assert ("neighbours" in lines[0]) == (room >= 80)


def test_a_bar_is_filled_and_is_told_without_colours_and_without_blocks() -> None:
    rows = {0: Row(0)}
    rows[0].heard(status(seconds_computing=5.0, seconds_mixing=1.0, seconds_exchanging=2.0, seconds_waiting=2.0))
    bar = "".join(share.glyph * n for share, n in zip(SHARES, (12, 2, 5, 5), strict=True))
    assert f"{bar}  50%" in drawn(rows, 140)[1]
    plain = drawn(rows, 140, encoding="ascii")
    assert "############%%=====.....  50%" in plain[1]
    assert "# computing" in plain[-1]


@pytest.mark.parametrize("state", ["STARTING", "FINISHED", "DRAINING"])
def test_who_does_not_train_says_what_it_does(state: str) -> None:
    rows = {0: Row(0)}
    rows[0].heard(status(state=State.Value(f"STATE_{state}")))
    assert state.lower() in drawn(rows, 80)[1]


def test_more_peers_than_lines_are_counted() -> None:
    rows = {peer: Row(peer, status(peer), True) for peer in range(64)}
    assert len(drawn(rows, 80)) == 66
    lines = drawn(rows, 80, height=24)
    assert len(lines) == 24
    assert lines[-2] == " and 43 more peers"
    assert len(drawn(dict(list(rows.items())[:22]), 80, height=24)) == 24, "just as many as there is room for"
    assert len(drawn(rows, 80, height=1)) == 4, "a terminal of one line"
    terminal = Console(width=80, height=10, file=io.StringIO(), force_terminal=True, color_system=None)
    terminal.print(Frame(Text("what is run\n1.0 s"), rows.values()))
    said = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert len(said.splitlines()) == 9, "the cursor takes the last line"


def test_numbers_for_people() -> None:
    assert [number(x) for x in (0.12345, 12.3, 1e6, math.nan, math.inf)] == ["0.1235", "12.3000", "1e+06", "-", "inf"]
    assert [amount(x) for x in (7, 1234, 5.5e7, 2e13)] == ["7 B", "1.23 kB", "55 MB", "20 TB"]


def test_a_state_of_a_later_version_is_unknown() -> None:
    row = Row(0)
    row.heard(status(state=17))
    assert "unknown" in drawn({0: row}, 110)[1]
