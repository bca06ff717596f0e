"""How a link ends in order: an end that goes does not hang up before the other has read what it still needs.

For its sender an exchange that is not atomic is over when its vector was handed to the carrier, where it may lie for long: the lanes
are not ordered between them, and the other end may not have opened that exchange yet. So an end that goes says how many frames it
has written up to the last vector of that kind, and the other answers when it has read so many. (What is atomic needs no answer: it is
over when the other end's vote is here.) An end that has said goodbye opens nothing any more, so nobody waits for its answer: two that
go at once go at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peer.wire import gossip_pb2 as wire


class Goodbye:
    """Of one link. queue: sends a control message. down: done when the link is."""

    def __init__(self, queue: Callable[[wire.ControlMessage], None], down: asyncio.Future[str]) -> None:
        self._queue = queue
        self._down = down
        self._written = 0
        self._owed = 0
        self._read = 0
        self._asked: int | None = None  # frames after which the other end wants our answer
        self._said = False
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def owes(self) -> bool:
        """Whether the other end may not have read yet what it needs."""
        return self._owed > 0 and not self._answered.done() and not self._down.done()

    def wrote(self) -> None:
        """A frame was handed to the carrier."""
        self._written += 1

    def promised(self) -> None:
        """With the frame written last a vector is whole whose exchange is over here now, or as soon as the other's is here."""
        self._owed = self._written

    def read(self) -> None:
        """A frame was read, and put into its place or dropped."""
        self._read += 1
        self._answer()

    def hear(self, said: wire.Goodbye) -> None:
        if not self._answered.done():
            self._answered.set_result(None)
        if not said.answer:
            self._asked = said.frames
            self._answer()

    async def say(self) -> None:
        """Until the other end has read what it needs of what was written so far, goes too, or is gone. Without a deadline. May be
        called again; no exchange may be opened after."""
        if not self._said:
            self._said = True
            self._queue(wire.ControlMessage(goodbye=wire.Goodbye(frames=self._owed)))
        await asyncio.wait((self._answered, self._down), return_when=asyncio.FIRST_COMPLETED)

    def _answer(self) -> None:
        if self._asked is not None and self._read >= self._asked:
            self._asked = None
            self._queue(wire.ControlMessage(goodbye=wire.Goodbye(answer=True)))
