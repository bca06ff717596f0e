"""What the exchange bench compares: raw sockets, gloo, and our transport, each as the main function of a crew's member (crew.py).

Orders: one-way (member 0 to member 1), both-ways (both at once), all-reduce (ring, among all), gossip (everybody with its two neighbours
on a ring, both ways), word (a control word and its answer).
"""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from crew import Order, Post, Vectors, run_on_uvloop, serve_blocking, serve_on_loop
from torch import Tensor

from peer.daemon.taken import Taken
from peer.daemon.worker import INLINE, T
from peer.gossip.algorithm import PeerState, ScheduleOptions, Update
from peer.gossip.algorithms.ring_all_reduce import RingAllReduce
from peer.gossip.digest import Digest
from peer.gossip.effects import Accumulate, Accumulated, Answer, Effect, Exchange, Inbox
from peer.gossip.round import advance
from peer.transport.base import ExchangeKey, Identity, Word, WordKind
from peer.transport.exchange import byte_view
from peer.transport.grpc import GrpcOptions, GrpcTransport
from peer.transport.handshake import DataPlane
from peer.wire import gossip_pb2 as wire
from topology import build

WORDS = 300
RAW_WORD = bytes(64)


# -- raw sockets


def raw_main(rank: int, size: int, end: socket.socket, kind: str) -> None:
    """kind: default, cubic, or unix. A thread per direction when both go at once."""
    post = Post(end)
    sock = _raw_socket(rank, post, kind)

    def send(vectors: Vectors, times: int) -> None:
        payload = byte_view(vectors.get("own"))
        for _ in range(times):
            sock.sendall(payload)

    def receive(vectors: Vectors, times: int) -> None:
        inbox = byte_view(vectors.get("inbox"))
        for _ in range(times):
            at = 0
            while at < len(inbox):
                at += sock.recv_into(inbox[at:])

    def play(order: Order, vectors: Vectors) -> dict[str, float] | None:
        if order.what == "word":
            return _raw_words(sock, asks=rank == 0)
        if order.what == "one-way":
            (send, receive)[rank](vectors, order.times)
            return None
        sender = threading.Thread(target=send, args=(vectors, order.times))
        sender.start()
        receive(vectors, order.times)
        sender.join()
        return None

    serve_blocking(post, play, _touch_pair(rank))


def _raw_socket(rank: int, post: Post, kind: str) -> socket.socket:
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    listener = socket.socket(family)
    here: Any = f"\0grapevine-bench-{os.getpid()}" if kind == "unix" else ("127.0.0.1", 0)
    _congestion(listener, kind)
    listener.bind(here)
    listener.listen(1)
    post.say("address", listener.getsockname() if kind != "unix" else here)
    addresses = post.hear()
    if rank == 0:
        made, _ = listener.accept()
    else:
        made = socket.socket(family)
        _congestion(made, kind)
        made.connect(addresses[0] if kind == "unix" else tuple(addresses[0]))
    listener.close()
    if kind != "unix":
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _raw_words(sock: socket.socket, *, asks: bool) -> dict[str, float]:
    """WORDS messages and their answers, one after the other: the median round trip."""
    seconds = []
    for _ in range(WORDS):
        begun = time.monotonic()
        if asks:
            sock.sendall(RAW_WORD)
        if sock.recv(len(RAW_WORD), socket.MSG_WAITALL) != RAW_WORD:
            raise SystemExit("the other member is gone")
        if not asks:
            sock.sendall(RAW_WORD)
        seconds.append(time.monotonic() - begun)
    return {"median round trip": sorted(seconds)[WORDS // 2]} if asks else {}


def _congestion(sock: socket.socket, kind: str) -> None:
    if kind == "cubic":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")


def _touch_pair(rank: int) -> Any:
    def touch(order: Order, vectors: Vectors) -> None:
        if order.what != "one-way" or rank == 0:
            vectors.get("own")
        if order.what != "one-way" or rank == 1:
            vectors.get("inbox")

    return touch


# -- gloo


def gloo_main(rank: int, size: int, end: socket.socket, port: int) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    post = Post(end)
    post.say("address", "")
    post.hear()
    patience = datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size, timeout=patience)

    def play(order: Order, vectors: Vectors) -> None:
        for _ in range(order.times):
            if order.what == "one-way":
                if rank == 0:
                    dist.send(vectors.get("own"), 1)
                else:
                    dist.recv(vectors.get("inbox"), 0)
            elif order.what == "both-ways":
                works = dist.isend(vectors.get("own"), 1 - rank), dist.irecv(vectors.get("inbox"), 1 - rank)
                for work in works:
                    assert work is not None
                    work.wait()
            else:
                dist.all_reduce(vectors.get("own"))

    def touch(order: Order, vectors: Vectors) -> None:
        if order.what == "all-reduce":
            vectors.get("own").fill_(1e-30)
        else:
            _touch_pair(rank)(order, vectors)

    serve_blocking(post, play, touch)
    os._exit(0)


# -- ours


class Nobody:
    """The service of a peer that no observer asks."""

    def status(self) -> wire.StatusReply:
        return wire.StatusReply()

    async def snapshot(self) -> tuple[int, Tensor]:
        return 0, torch.zeros(0)


class NoStep:
    """All-reduce without an update: gloo makes none either."""

    def step(self, gradient: Tensor, samples_clock: int, scale: float = 1.0) -> None:
        return None

    def learning_rate(self, samples_clock: int) -> float:
        return 1.0


class Ours:
    """One peer's transport and what it is ordered to do with it. Also its listener."""

    def __init__(self, rank: int, size: int, plane: str) -> None:
        identity = Identity("bench", rank, size, "", {})
        options = GrpcOptions(
            data_plane=DataPlane.GRPC if plane == "grpc" else DataPlane.DIRECT, local_sockets=plane != "tcp"
        )
        self.transport = GrpcTransport(identity, "127.0.0.1:0", service=Nobody(), options=options)
        self.rank, self.size = rank, size
        self._round = 0
        self._changed = asyncio.Event()
        self._answers = 0
        self._worker = ThreadPoolExecutor(1)
        self._score: RingScore | None = None
        self.extra: dict[str, float] = {}

    async def link(self, addresses: list[str]) -> None:
        self.transport.connect({i: a for i, a in enumerate(addresses) if i > self.rank})
        while len(self.transport.linked()) < self.size - 1:
            self._changed.clear()
            await self._changed.wait()

    def touch(self, order: Order, vectors: Vectors) -> None:
        if self._score is not None and self._score.num_bytes != order.num_bytes:
            self._score = None  # its sum is freed before the next is made, and before memory is looked at
            vectors.look()
        if order.what in ("one-way", "both-ways"):
            _touch_pair(self.rank)(order, vectors)
        elif order.what == "gossip":
            for name in ("own", "inbox", "inbox 2"):
                vectors.get(name)
        elif order.what == "all-reduce":
            vectors.get("own")
            vectors.get("inbox", 4 * (order.num_bytes // 4 // self.size + 1))
            if self._score is None:
                self._score = RingScore(self, vectors, order.num_bytes)
            self._score.exchanging = self._score.mixing = 0.0

    async def play(self, order: Order, vectors: Vectors) -> dict[str, float]:
        self.extra = {}
        if order.what == "word":
            await self._words()
            return self.extra
        score = self._score if order.what == "all-reduce" else None
        for _ in range(order.times):
            self._round += 1
            self.transport.advance(ExchangeKey(self._round, 0))
            if score is not None:
                await score.play(self._round)
            else:
                await self._exchange(order.what, vectors)
        if score is not None:
            self.extra = {"exchanging": score.exchanging / order.times, "mixing": score.mixing / order.times}
        return self.extra

    async def _exchange(self, what: str, vectors: Vectors) -> None:
        one_way = what == "one-way"
        key, last = ExchangeKey(self._round, 0), self.size - 1
        if one_way:
            send = vectors.get("own") if self.rank == 0 else None
            receive = vectors.get("inbox") if self.rank == 1 else None
            handles = [self.transport.exchange(1 - self.rank, key, send, receive, atomic=False)]
        else:
            neighbours = sorted({(self.rank - 1) % (last + 1), (self.rank + 1) % (last + 1)})
            handles = [
                self.transport.exchange(peer, key, vectors.get("own"), vectors.get(name), atomic=True)
                for peer, name in zip(neighbours, ("inbox", "inbox 2"), strict=False)
            ]
        for handle in handles:
            outcome = await handle.outcome
            if outcome.lost is not None:
                raise SystemExit(f"an exchange with peer {outcome.peer} was lost: {outcome.lost}")

    async def _words(self) -> None:
        """Member 0 asks member 1, one word after the other: the median round trip."""
        seconds = []
        for number in range(WORDS if self.rank == 0 else 0):
            begun, before = time.monotonic(), self._answers
            self.transport.tell(1, Word(WordKind.CLOSED, 0, number))
            while self._answers == before:
                self._changed.clear()
                await self._changed.wait()
            seconds.append(time.monotonic() - begun)
        if seconds:
            self.extra = {"median round trip": sorted(seconds)[len(seconds) // 2]}

    async def off_loop(self, work: Any, num_elements: int) -> Any:
        if num_elements <= INLINE:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    # the listener

    def on_word(self, peer: int, word: Word) -> None:
        if self.rank != 0:
            self.transport.tell(peer, word)
        self._answers += 1
        self._changed.set()

    def on_link_up(self, peer: int) -> None:
        self._changed.set()

    def on_link_down(self, peer: int, reason: str) -> None:
        self._changed.set()

    def on_refused(self, peer: int | None, field: str, sentence: str) -> None:
        raise SystemExit(sentence)

    def on_dropped(self, peer: int | None, reason: str) -> None:
        return None

    def on_heard(self, peer: int, round: int) -> None:
        return None

    def on_digests(self, peer: int, digests: Sequence[Digest]) -> None:
        return None

    def on_trace(self, peer: int, key: ExchangeKey, traceparent: str) -> None:
        return None


class RingScore:
    """Plays RingAllReduce's own score as the daemon does: exchanges on the loop, its mathematics off it."""

    def __init__(self, ours: Ours, vectors: Vectors, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        own = vectors.get("own")
        state = PeerState(ours.rank, ours.size, own, NoStep(), batch_size=1, weighting="samples")
        self._ours, self._inbox = ours, vectors.get("inbox")
        self._done = Accumulated(own, 1, 1, 0.0, (0,), "first")
        self._algorithm = RingAllReduce(state)
        options = ScheduleOptions(build("ring", ours.size), 0, None, None, None, "metropolis", 0.5, 0)
        self._plan = RingAllReduce.make_schedule(options).plan(0, ours.rank)
        self.exchanging = self.mixing = 0.0

    async def play(self, round: int) -> None:
        score, answer = self._algorithm.round(self._plan), None
        while True:
            begun = time.monotonic()
            step = await self._advance(score, answer)
            mixed = time.monotonic()
            self.mixing += mixed - begun
            if isinstance(step, Update):
                return
            answer = await self._carry_out(round, step)
            self.exchanging += time.monotonic() - mixed

    def _off_loop(self, work: Callable[[], T]) -> Awaitable[T]:
        return self._ours.off_loop(work, self._done.grad_sum.numel())

    async def _advance(self, score: Any, answer: Answer | None) -> Effect | Update:
        step: Effect | Update = await self._ours.off_loop(lambda: advance(score, answer), self._done.grad_sum.numel())
        return step

    async def _carry_out(self, round: int, effect: Effect) -> Answer:
        if isinstance(effect, Accumulate):
            return self._done
        assert isinstance(effect, Exchange)
        assert not effect.make, "float32 is its own payload"
        key, inboxes, taken, handles = ExchangeKey(round, effect.phase), dict[int, Tensor](), list[Taken](), []
        for peer in {*effect.send, *effect.receive}:
            arrived = lent = None
            if peer in effect.receive:
                inbox = effect.into[peer] if peer in effect.into else self._inbox[: effect.receive[peer]]
                inboxes[peer] = inbox
                if peer in effect.take:
                    taken.append(Taken(inbox, effect.take[peer], self._off_loop, kept=peer in effect.into))
                    arrived, lent = taken[-1].arrived, taken[-1].lent
            send, receive = effect.send.get(peer), inboxes.get(peer)
            handles.append(
                self._ours.transport.exchange(peer, key, send, receive, atomic=False, arrived=arrived, lent=lent)
            )
        lost = {(await handle.outcome).peer: str((await handle.outcome).lost) for handle in handles}
        broken = {peer: why for peer, why in lost.items() if why != "None"}
        for piecewise in taken:
            await piecewise.finish(whole=not broken)
        return Inbox({} if broken else inboxes, broken)


def ours_main(rank: int, size: int, end: socket.socket, plane: str) -> None:
    """plane: grpc, direct (as the product chooses: Unix sockets on one machine), or tcp."""
    torch.set_num_threads(1)
    post = Post(end)

    async def live() -> None:
        ours = Ours(rank, size, plane)
        post.say("address", await ours.transport.start(ours))
        await ours.link(await post.hear_on_loop())
        await serve_on_loop(post, ours.play, ours.touch)
        await ours.transport.stop()

    run_on_uvloop(live)
    os._exit(0)
