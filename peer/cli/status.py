"""`grapevine status HOST:PORT`."""

from __future__ import annotations

from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.table import Table

from peer.cluster.live import by_reason
from peer.cluster.table import amount
from peer.exit_codes import ExitCode, Fatal
from peer.transport.client import PeerClient, PeerUnreachable
from peer.transport.states import state_name
from peer.wire.gossip_pb2 import StatusReply


async def show_status(address: str, console: Console, *, as_json: bool, timeout: float) -> None:
    """Raises Fatal if the peer does not answer."""
    client = PeerClient(address)
    try:
        reply = await client.status(timeout=timeout)
    except PeerUnreachable as error:
        raise Fatal(ExitCode.ABSENT, str(error)) from None
    finally:
        await client.close()
    if as_json:
        print(MessageToJson(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))  # noqa: T201
        return
    console.print(_facts(reply))
    console.print(_neighbors(reply))


def _facts(reply: StatusReply) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim")
    table.add_column()
    table.add_row(
        "peer",
        f"{reply.peer} of {reply.num_peers}, run {reply.run!r}, {state_name(reply.state)}",
    )
    table.add_row(
        "training", f"{reply.algorithm} on {reply.topology}, task {reply.task}, model {reply.fingerprint[:12]}"
    )
    if reply.trainer:
        table.add_row("trainer", f"in a {reply.trainer} of its own")
    reasons = by_reason(reply.rounds_by_reason)
    table.add_row("round", f"{reply.round}, of which closed {reasons}" if reasons else str(reply.round))
    table.add_row(
        "samples",
        f"{reply.samples:,} in updates, {reply.samples_redone:,} redone, {reply.samples_nonfinite:,} non-finite",
    )
    table.add_row("batch loss", f"{reply.train_loss:.4f}")
    table.add_row(
        "idle", f"{reply.idle_fraction:.1%} of {reply.seconds:.1f} s; staleness at most {reply.max_staleness}"
    )
    table.add_row("bytes", f"{amount(reply.bytes_sent)} sent, {amount(reply.bytes_received)} received")
    if reply.metrics_port:
        table.add_row("metrics", f"port {reply.metrics_port}: /metrics, and its page at /")
    return table


def _neighbors(reply: StatusReply) -> Table:
    table = Table(
        "neighbour",
        "address",
        "state",
        "by",
        "sent",
        "received",
        "lost exchanges",
        box=None,
        padding=(0, 1),
        header_style="dim",
    )
    for j in reply.neighbors:
        moved = amount(j.bytes_sent), amount(j.bytes_received)
        table.add_row(str(j.peer), j.address, j.state, j.data_plane, *moved, str(j.missed))
    return table
