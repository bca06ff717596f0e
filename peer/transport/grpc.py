"""Links over gRPC: one channel per pair of peers, dialled by the lower id, with two streams that stay open.

`Control` carries protobuf, `Exchange` raw frames; both pass through generic handlers with identity serializers, so
that what a peer sends is parsed by us, where it can be refused, and not by gRPC, where it would break the stream. The
dialer shakes hands on Control and then opens Exchange with the session token it was given, by which the answering end
joins the two. If both ends want a data socket (door.py), that takes the place of the Exchange stream.

How gRPC is set is in channel.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final
from urllib.parse import unquote

import grpc
import grpc.aio

from peer.logs import event
from peer.transport.base import ExchangeKey, Identity, Listener
from peer.transport.callers import MAX_CALLERS, Callers
from peer.transport.channel import GrpcOptions as GrpcOptions
from peer.transport.channel import client_options, server_options
from peer.transport.codec import frames
from peer.transport.direct import DirectLane
from peer.transport.door import Door, knock
from peer.transport.emulated import SlowNetwork
from peer.transport.exchange import byte_view
from peer.transport.handshake import HELLO_SECONDS, DataPlane, Greeting, Session, agreed_plane
from peer.transport.lane import LaneClosed
from peer.transport.linked import LinkedTransport
from peer.transport.machine import is_loopback
from peer.transport.observers import Health, Observers
from peer.transport.service import PACKAGE_SERVICE, PeerService
from peer.transport.sockets import fit_connections
from peer.transport.streams import ClientLane, Context, ServerLane, end
from peer.transport.wordline import WordLine
from peer.wire import gossip_pb2 as wire

CONTROL: Final = f"/{PACKAGE_SERVICE}/Control"
EXCHANGE: Final = f"/{PACKAGE_SERVICE}/Exchange"
SESSION_KEY: Final = "grapevine-session-bin"
MAX_SNAPSHOTS: Final = 2
"""Snapshots served at once; each holds a copy of the vector."""

SNAPSHOT_WRITE_SECONDS: Final = 10.0
"""A reader that does not take a frame of its snapshot in this time is cut."""

log = logging.getLogger("grapevine.transport")
_TOKEN = struct.Struct("<Q")


class GrpcTransport(LinkedTransport):
    """Listens on `listen` ("host:port", port 0 for any) and answers observers with `service`."""

    def __init__(
        self,
        identity: Identity,
        listen: str,
        *,
        service: PeerService,
        options: GrpcOptions | None = None,
        network: SlowNetwork | None = None,
    ) -> None:
        self._options = options if options is not None else GrpcOptions()
        super().__init__(
            identity,
            commit_grace_seconds=self._options.commit_grace_seconds,
            network=network,
            data_plane=self._options.data_plane,
        )
        self._listen = listen
        self._service = service
        self._health = Health(("", PACKAGE_SERVICE))
        self._server: grpc.aio.Server | None = None
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._door: Door | None = None
        self._unreachable: set[int] = set()  # peers whose data sockets could not be reached when last tried
        self._awaited: dict[int, asyncio.Future[ServerLane]] = {}  # Exchange streams to come, by session token
        self._snapshots = asyncio.Semaphore(MAX_SNAPSHOTS)
        self._callers = Callers(self._turned_away)
        self._observers = Observers(self._turned_away)

    # -- life

    async def start(self, listener: Listener) -> str:
        self._listener = listener
        server = grpc.aio.server(
            options=server_options(self._options), maximum_concurrent_rpcs=2 * self.identity.num_peers + 8 * MAX_CALLERS
        )
        server.add_generic_rpc_handlers((self._methods(), self._observers.health(self._health)))
        if self._options.reflection:
            server.add_generic_rpc_handlers((self._observers.schema(PACKAGE_SERVICE),))
        in_vain = f"cannot listen on {self._listen}: is the port taken, or the address none of this machine?"
        try:
            port = server.add_insecure_port(self._listen)
        except RuntimeError as refused:
            raise OSError(errno.EADDRINUSE, in_vain) from refused
        if port == 0:
            raise OSError(errno.EADDRINUSE, in_vain)
        await server.start()
        self._server = server
        if self._data_plane is not DataPlane.GRPC:
            await self._open_door(Door(lambda reason: listener.on_dropped(None, reason)))
        self.set_serving(True)
        return f"{self._listen.rpartition(':')[0]}:{port}"

    async def _open_door(self, door: Door) -> None:
        """Let data sockets in. Where nobody asked for them by name, it is no reason to end that they can't be."""
        try:
            await door.open(_host(self._listen), self._options.data_port, local=self._options.local_sockets)
        except OSError as refused:
            door.close()
            if self._data_plane is DataPlane.DIRECT or self._options.data_port:
                if self._server is not None:
                    await self._server.stop(None)
                    self._server = None
                raise
            lacking = event("no-data-sockets", reason=str(refused))
            log.warning("peer %d: %s; vectors take gRPC", self.identity.peer, refused, extra=lacking)
            return
        self._door = door

    def set_serving(self, serving: bool) -> None:
        """What the health service says of this peer from now on."""
        self._health.set(serving)

    async def stop(self) -> None:
        self.set_serving(False)
        await super().stop()
        if self._door is not None:
            self._door.close()
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        if self._server is not None:
            await self._server.stop(0.2)
            self._server = None

    # -- dialling

    async def _attempt(self, peer: int, address: str) -> bool:
        channel = self._channels.get(address)
        if channel is None:
            channel = grpc.aio.insecure_channel(address, options=client_options(self._options))
            self._channels[address] = channel
        with contextlib.ExitStack() as lanes:
            try:
                async with asyncio.timeout(HELLO_SECONDS):
                    control = ClientLane(channel.stream_stream(CONTROL)(wait_for_ready=True))
                    lanes.callback(control.cancel)
                    near = is_loopback(_host(address))
                    session = await self._agree(control, peer, secrets.randbits(64), loopback=near)
                    if session is None:
                        return False
                    words, bulk = await self._sockets(session, address)
                    if words is not None:
                        lanes.callback(words.close)
                    if bulk is not None:
                        lanes.callback(bulk.close)
                    elif session.data_plane is DataPlane.DIRECT:
                        return False
                    else:
                        token = ((SESSION_KEY, _TOKEN.pack(session.tag_out)),)
                        stream = ClientLane(channel.stream_stream(EXCHANGE)(metadata=token))
                        lanes.callback(stream.cancel)
                        await stream.opened()
                        if near:
                            fit_connections(*_endpoint(address))
                await self._run_link(session, control, bulk or self._framed(session, stream, "grpc"), words=words)
            except (LaneClosed, TimeoutError):
                return False
        return True

    async def _sockets(self, session: Session, address: str) -> tuple[WordLine | None, DirectLane | None]:
        """The sockets for words and for vectors that were agreed on; without the latter there are to be none, or they can not be had."""
        offer, host, local = session.offer, _host(address), self._options.local_sockets
        if offer is None or session.data_plane is DataPlane.GRPC:
            return None, None
        words: WordLine | None = None
        try:
            with contextlib.ExitStack() as undone:
                if offer.words_token:
                    told = wire.DirectOffer(token=offer.words_token, port=offer.port, unix_name=offer.unix_name)
                    words = WordLine((await knock(told, host, local=local, shares=False)).release())
                    undone.callback(words.close)
                lane = await knock(offer, host, local=local)
                undone.pop_all()
        except (OSError, TimeoutError) as broken:
            self._told.on_dropped(session.peer, "unreachable")
            log.log(
                logging.DEBUG if session.peer in self._unreachable else logging.WARNING,  # it is tried again and again
                "peer %d: no data socket to peer %d: %s%s",
                *(self.identity.peer, session.peer, str(broken) or "no answer in time"),
                "" if session.data_plane is DataPlane.DIRECT else "; its vectors take gRPC",
                extra=event("no-data-socket", neighbor=session.peer, reason=str(broken)),
            )
            self._unreachable.add(session.peer)
            return None, None
        self._unreachable.discard(session.peer)
        return words, lane

    # -- answering

    def _methods(self) -> grpc.GenericRpcHandler:
        asks = self._observers
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Control": grpc.stream_stream_rpc_method_handler(self._control),
            "Exchange": grpc.stream_stream_rpc_method_handler(self._exchange),
            "Status": asks.question(self._status, wire.StatusRequest.FromString, wire.StatusReply.SerializeToString),
            "Snapshot": asks.reading(self._snapshot, wire.SnapshotRequest.FromString),
        }
        return grpc.method_handlers_generic_handler(PACKAGE_SERVICE, methods)

    async def _control(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        async with self._callers.call(context) as known:
            await self._answered(ServerLane(context), context, known)

    async def _answered(self, control: ServerLane, context: Context, known: Callable[[], None]) -> None:
        """A link whose other end dialled. Raises TimeoutError if it does not agree in time."""
        lane = _LaneToCome(self._awaited, self._door)
        near = is_loopback(_caller(context)[0])

        def offer(theirs: Greeting) -> wire.DirectOffer | None:
            return lane.offer() if agreed_plane(self._data_plane, theirs.data_plane) is not DataPlane.GRPC else None

        try:
            async with asyncio.timeout(HELLO_SECONDS) as patience:
                with lane.expected(), self._callers.waiting(patience):
                    session = await self._agree(control, None, lane.token, offer, loopback=near)
                    if session is None:
                        return
                    await lane.comes(session.data_plane)
            known()
            if lane.socket.done():
                await self._run_link(session, control, lane.socket.result(), words=lane.word_line())
            else:
                stream = lane.stream.result()
                if near:
                    fit_connections(*_caller(context))
                await self._run_link(session, control, self._framed(session, stream, "grpc"), stream.over)
        except LaneClosed:
            return
        finally:
            lane.end()

    async def _exchange(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        token = dict(context.invocation_metadata() or ()).get(SESSION_KEY)
        waiting = None
        if isinstance(token, bytes) and len(token) == _TOKEN.size:
            waiting = self._awaited.pop(_TOKEN.unpack(token)[0], None)
        if waiting is None or waiting.done():
            self._told.on_dropped(None, "token")
            await end(context, grpc.StatusCode.PERMISSION_DENIED, "no such session")
        await context.send_initial_metadata(())
        bulk = ServerLane(context)
        waiting.set_result(bulk)
        await bulk.over

    def _turned_away(self, reason: str) -> None:
        self._told.on_dropped(None, reason)

    async def _status(self, _request: wire.StatusRequest, _context: Context) -> wire.StatusReply:
        return self._service.status()

    async def _snapshot(self, request: wire.SnapshotRequest, context: Context) -> None:
        if self._snapshots.locked():
            await end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many snapshots at once; ask again")
        try:
            async with self._snapshots:
                round_, vector = await self._service.snapshot()
                for message in frames(ExchangeKey(round_, 0), request.tag, byte_view(vector)):
                    async with asyncio.timeout(SNAPSHOT_WRITE_SECONDS):
                        await context.write(message)
        except TimeoutError:  # nor may how it ended be read
            await end(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the snapshot was not read in time")


def _host(address: str) -> str:
    return _endpoint(address)[0]


def _endpoint(address: str) -> tuple[str, int]:
    """Of "host:port", without the brackets of IPv6; port 0 where there is none."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() else 0


def _caller(context: Context) -> tuple[str, int]:
    """Of "ipv4:127.0.0.1:1234" or "ipv6:%5B::1%5D:1234"."""
    return _endpoint(unquote(context.peer()).partition(":")[2])


class _LaneToCome:
    """The bulk lane of a link that is being made at the answering end: the Exchange stream or the data socket, whichever the dialling
    end opens. Both are known before our words go out: what they lead to may overtake our verdict."""

    def __init__(self, streams: dict[int, asyncio.Future[ServerLane]], door: Door | None) -> None:
        loop = asyncio.get_running_loop()
        self.token = secrets.randbits(64)
        self.stream: asyncio.Future[ServerLane] = loop.create_future()
        self.socket: asyncio.Future[DirectLane] = loop.create_future()
        self._words: asyncio.Future[DirectLane] = loop.create_future()
        self._line: WordLine | None = None
        self._streams = streams
        self._door = door
        self._offer: wire.DirectOffer | None = None
        self._words_offer: wire.DirectOffer | None = None

    def offer(self) -> wire.DirectOffer | None:
        """For the verdict; None if there is no door."""
        if self._door is not None:
            self._offer = self._door.expect(self.socket)
            self._words_offer = self._door.expect(self._words, shares=False)
            self._offer.words_token = self._words_offer.token
        return self._offer

    def word_line(self) -> WordLine | None:
        """The socket for words, if the dialling end opened it."""
        if self._words.done() and self._line is None:
            self._line = WordLine(self._words.result().release())
        return self._line

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """Within it a lane can come."""
        self._streams[self.token] = self.stream
        try:
            yield
        finally:
            self._streams.pop(self.token, None)
            for offer in (self._offer, self._words_offer):
                if self._door is not None and offer is not None:
                    self._door.withdraw(offer)

    async def comes(self, plane: DataPlane) -> None:
        """Until one is there that suits."""
        lanes: list[asyncio.Future[Any]] = [] if plane is DataPlane.DIRECT else [self.stream]
        lanes += [] if plane is DataPlane.GRPC else [self.socket]
        await asyncio.wait(lanes, return_when=asyncio.FIRST_COMPLETED)

    def end(self) -> None:
        """The link is over, or never was: what came for it ends, and what still comes is not taken."""
        if self._line is not None:
            self._line.close()
        elif not self._words.cancel() and not self._words.cancelled():
            self._words.result().close()
        if not self.socket.cancel() and not self.socket.cancelled():
            self.socket.result().close()
        if not self.stream.cancel() and not self.stream.cancelled() and not self.stream.result().over.done():
            self.stream.result().over.set_result(None)
