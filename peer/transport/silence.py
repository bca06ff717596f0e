"""Whether the path of a TCP connection is lost though the kernel still tries: for the vectors' socket, whose reader may stop for long.

TCP_USER_TIMEOUT can't tell the two: it also ends a connection whose other end answers, whenever it is asked, that its window is closed, and
that is how a sender is held back. The kernel's keepalive can, but is silent while anything waits to be sent. So the kernel is asked what it
knows (TCP_INFO), every LOOK_SECONDS:

    bytes are not acknowledged, and nothing was heard since they were sent last    the path is lost, or slow
    the window is closed, and the last probe was not answered                      the path is lost, or slow
    the window is closed, and probes are answered                                  the other end does not read now
    nothing waits to be sent                                                       keepalive asks

What lasts for SILENCE_SECONDS is not slow, and what was asked TRIES times in vain was not lost once, nor left unanswered because Linux
answers a probe at most twice a second. At a closed window the kernel asks ever less often, up to two minutes apart; the other end notices
sooner, unless it is held back as well. Of a path that is lost in one direction one of the ends notices.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final, NamedTuple

SILENCE_SECONDS: Final = 15.0
"""A connection of which nothing is answered for so long is over."""

LOOK_SECONDS: Final = 3.0
TRIES: Final = 3
"""Of the kernel, as for keepalive. Several between two looks count as one."""

_APART_SECONDS: Final = 0.05  # of two sends, as the kernel's clock is not ours

_INFO_BYTES: Final = 60
_PROBES_AT: Final = 3  # in Linux' struct tcp_info: u8 tcpi_probes
_UNACKED_AT: Final = 24  # u32 tcpi_unacked
_SENT_AT: Final = 44  # u32 tcpi_last_data_sent
_HEARD_AT: Final = 56  # u32 tcpi_last_ack_recv
_WORD = struct.Struct("=I")


class Asked(NamedTuple):
    """unacked: segments sent and not acknowledged. probes: of a closed window, since the last that was answered. sent_ago, heard_ago:
    seconds since bytes were sent, or sent again, and since anything came from the other end."""

    unacked: int
    probes: int
    sent_ago: float
    heard_ago: float

    @property
    def unanswered(self) -> bool:
        """Whether an answer is owed to what was asked last."""
        return self.probes > 0 or (self.unacked > 0 and self.sent_ago < self.heard_ago)


def asked(sock: socket.socket) -> Asked | None:
    """What the kernel tells of a TCP socket; None where it does not (or in another form), and when the socket is closed."""
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except OSError:  # closed, or not to be had
        return None
    if len(info) < _INFO_BYTES:
        return None
    unacked, sent, heard = (_WORD.unpack_from(info, at)[0] for at in (_UNACKED_AT, _SENT_AT, _HEARD_AT))
    return Asked(unacked, info[_PROBES_AT], sent / 1000, heard / 1000)


class Silence:
    """Of one connection, told now and then what the kernel says of it."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._tries = 0
        self._tried = 0.0  # when last

    def lasts(self, now: float, known: Asked) -> float:
        """Seconds for which nothing was answered, as far as was looked; 0 while it was asked fewer than TRIES times."""
        sent = now - known.sent_ago
        if not known.unanswered:
            self._since = None
            return 0.0
        if self._since is None or now - known.heard_ago > self._since:
            self._since = now if known.probes else sent  # the kernel does not say when it sent a probe
            self._tries, self._tried = 1, sent
        elif sent > self._tried + _APART_SECONDS:
            self._tries, self._tried = self._tries + 1, sent
        return now - self._since if max(self._tries, known.probes) >= TRIES else 0.0
