"""How gRPC is set, at both ends of a channel. Needs no torch, so that who only asks a peer something need not wait for it.

A dead neighbour is noticed by keepalive; with gRPC's defaults that takes minutes. The reconnect back-off of gRPC, up to 120 s by default,
is set to ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from peer.transport.codec import FRAME_BYTES, MAX_MESSAGE_BYTES
from peer.transport.handshake import DataPlane

CONNECT_SECONDS: Final = 2.0
FIRST_BACKOFF_SECONDS: Final = 0.05
LAST_BACKOFF_SECONDS: Final = 1.0
TAKEN_BYTES: Final = 4 * FRAME_BYTES
"""The largest message that gRPC takes in. Of a larger one it ends the stream, and doesn't tell the answering end why; so what is larger
than it may be, and not that large, is refused by us, and counted."""

WINDOW_BYTES: Final = 8 * 1024 * 1024
"""What gRPC takes of a stream ahead of its reader. It would fit that to the path by probing, and then holds tens of MiB a link for as long
as the channel lives. So over a path of 100 ms a link moves at most 80 MB/s; data sockets, which the kernel fits to the path, more."""

HTTP2_FRAME_BYTES: Final = 256 * 1024
"""Into what HTTP/2 cuts a message: by default 16 KiB, each with a header and a turn of gRPC's parser of its own. Measured: of the processor
time of a vector it saves 7 %, frames of 4 MiB 11 %; but a word may have to wait for a whole one, 0.1 s over 20 Mbit/s."""


@dataclass(frozen=True, slots=True)
class GrpcOptions:
    """keepalive_seconds: silence after which a connection is probed; raise it on metered links, a silent cut is
    noticed later. keepalive_timeout_seconds: how long the answer may take; raise it where round trips are long or
    machines stop for long. commit_grace_seconds: how long an exchange that was given up after its vote waits for the
    other's; raising it makes ends that decide differently rarer, and a give-up slower. reflection: serve the schema,
    for grpcurl. data_plane: what vectors travel on. data_port: where data sockets are let in by TCP, 0: any port.
    local_sockets: data sockets between peers of one machine may be Unix sockets."""

    keepalive_seconds: float = 2.0
    keepalive_timeout_seconds: float = 1.0
    commit_grace_seconds: float = 1.0
    reflection: bool = False
    data_plane: DataPlane = DataPlane.GRPC
    data_port: int = 0
    local_sockets: bool = True


def channel_options(options: GrpcOptions) -> list[tuple[str, int]]:
    """For both ends of a channel.

    While a bandwidth probe of gRPC's is unanswered it sends no keepalive, and gives that probe 60 s by default: a
    link that falls silent just after data would be noticed as late as that. `ping_timeout_ms` is set to the silence
    we bear.
    """
    silence = options.keepalive_seconds + options.keepalive_timeout_seconds
    return [
        ("grpc.http2.ping_timeout_ms", int(silence * 1000)),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", TAKEN_BYTES),
        ("grpc.keepalive_time_ms", int(options.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(options.keepalive_timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", 0),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.http2.max_frame_size", HTTP2_FRAME_BYTES),
        # else it grows with the most that was ever read at once
        ("grpc.experimental.tcp_max_read_buffer_size", FRAME_BYTES),
    ]


def client_options(options: GrpcOptions) -> list[tuple[str, int]]:
    """Of whoever dials: tried again soon, whatever gRPC thinks of it (its own back-off goes up to 120 s)."""
    return [
        *channel_options(options),
        ("grpc.initial_reconnect_backoff_ms", int(FIRST_BACKOFF_SECONDS * 1000)),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(LAST_BACKOFF_SECONDS * 1000)),
        ("grpc.use_local_subchannel_pool", 1),
    ]


def server_options(options: GrpcOptions) -> list[tuple[str, int]]:
    return [
        *channel_options(options),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", int(options.keepalive_seconds * 250)),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    ]
