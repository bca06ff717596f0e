"""What a peer answers to observers (`grapevine status`, the live view)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from peer.accounts.summary import PeerSummary
from peer.assembly import head_of
from peer.config import Config
from peer.daemon.conversation import Conversation
from peer.transport.base import Traffic
from peer.wire.gossip_pb2 import Neighbor, State, StatusReply

_SAME_IN_SUMMARY = (
    *("pid", "seconds", "round", "train_loss", "idle_fraction", "finished_fraction", "max_staleness"),
    *("samples", "samples_started", "samples_redone", "samples_nonfinite", "samples_abandoned"),
    *("bytes_sent", "bytes_received"),
)


def status_reply(
    config: Config,
    summary: PeerSummary,
    state: str,
    fingerprint: str,
    trainer: str,
    metrics_port: int,
    neighbors: list[Neighbor],
) -> StatusReply:
    """state: as `Peer.state`. trainer: what `--trainer` came to."""
    reply = StatusReply(
        peer=summary.peer,
        num_peers=config.peers,
        run=config.run,
        algorithm=config.algorithm,
        topology=config.topology,
        task=config.task,
        state=State.Value(f"STATE_{state.upper()}"),
        fingerprint=fingerprint,
        trainer=trainer,
        metrics_port=max(metrics_port, 0),
        neighbors=neighbors,
        head=head_of(config),
    )
    reply.rounds_by_reason.update(summary.rounds_by_reason)
    for name in _SAME_IN_SUMMARY:
        setattr(reply, name, getattr(summary, name))
    for name, seconds in summary.shares.items():
        setattr(reply, name, seconds)
    reply.chunks_finished = summary.chunks
    reply.consensus_distance = summary.neighbor_distance
    return reply


def neighbors_of(
    said: Conversation,
    neighbors: tuple[int, ...],
    addresses: Mapping[int, str],
    traffic: Mapping[int, Traffic],
    missed: Mapping[int, int],
) -> list[Neighbor]:
    """missed: exchanges lost with each, 0 of whom it does not know."""
    rows = []
    for j in neighbors:
        moved = traffic.get(j)
        rows.append(
            Neighbor(
                peer=j,
                address=addresses.get(j, ""),
                state=str(said.directory.status(j)),
                bytes_sent=moved.bytes_sent if moved else 0,
                bytes_received=moved.bytes_received if moved else 0,
                missed=missed[j],
                round_trip_seconds=moved.round_trip_seconds if moved else math.nan,
                data_plane=moved.data_plane if moved else "",
            )
        )
    return rows
