"""What a round may ask of its host, and what the host answers.

An algorithm is a generator: it yields an `Effect`, the host (daemon or simulator) carries it out in its own way and sends the
answer back in. `Accumulate` is answered with `Accumulated`, `Exchange`, `Gather` and `Reply` with `Inbox`, `Both` with the pair of
`Accumulated` and `Inbox`, `Either` with `Meanwhile`. Nothing here knows a clock, a socket or a thread.

Legend: d floats in a peer's vector, n peers, b samples in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Accumulate:
    """Compute chunk gradients at the round's parameters until the closing policy ends the round. Without `computes`, wait for that alone;
    the own quota then is that everybody else has closed the round."""

    computes: bool = True


class Taker(Protocol):
    """Works on a vector while the rest of it is still under way."""

    def __call__(self, payload: Tensor, arrived: int) -> None:
        """The first `arrived` elements of payload [k] are there. Called with growing numbers, at last with k; never twice at once."""

    @property
    def read(self) -> Callable[[Tensor], None] | None:
        """Another way to say it, of a taker that needs less for a frame's worth than it takes to hand that to another thread and be told,
        so that it may work on the event loop: the elements [m] that follow those it had, wherever they lie, not to be kept nor written to.
        It never raises."""


class Maker(Protocol):
    """Makes a vector [k] that is sent as far as it is made."""

    def __call__(self) -> int:
        """Make the next part of it, some milliseconds' work. Returns how many elements, from the first one, are there and will not change:
        more with each call, at last k, and k again if there is nothing left to do. Never called twice at once."""


class Exchange(NamedTuple):
    """Send one vector to some peers and receive one from some, within one phase of the round.

    `send[j]` [k] goes to peer j; the bytes must stay unchanged until the answer comes. From every peer in `receive` a vector of
    `receive[j]` elements is expected. All are of one `dtype`: float32, or uint8 if encoded (compression.py). With `atomic`, an edge
    counts only if both of its ends have the other's vector.

    into[j]: where the vector of peer j is to be written, instead of in a buffer of the host; for exchanges without which the round can't be
    completed, never atomic ones: a lost one leaves it half done. take[j] is given what has come of the vector of peer j, before
    the answer is there; what it was given by `read` is not in the answer, unless `into` says where. In an atomic exchange it only looks,
    without `read`: whether the edge counts is not known yet.

    make[j] makes send[j], which need not be there yet; vectors that are one have one maker. It is left in the middle only if the exchanges
    of all its peers are lost.
    """

    phase: int
    send: Mapping[int, Tensor]
    receive: Mapping[int, int]
    atomic: bool
    dtype: torch.dtype = torch.float32
    into: Mapping[int, Tensor] = MappingProxyType({})
    take: Mapping[int, Taker] = MappingProxyType({})
    make: Mapping[int, Maker] = MappingProxyType({})


class Gather(NamedTuple):
    """Receive a vector from each of several peers that wait for an answer to it: the other side of an `Exchange` of phase 0 that sends to
    this peer and receives from it, `atomic` or not as this is.

    receive[j]: elements of float32 that peer j sends. stamps[j]: number of the round of peer j that its vector is of; else that of this
    peer's round, or, with `any_round`, whatever it is of: then nobody need send anything, and nobody is missed. enough: the answer comes
    as soon as the vectors of so many peers are there, or nobody is left who could send one; None: when nobody is. It has every vector that
    has come and is not replied to, in the order of arrival; each may be written to, and is the algorithm's until the first effect after
    the reply. Who is late stays expected, over rounds if need be, until replied to.
    """

    receive: Mapping[int, int]
    enough: int | None = None
    stamps: Mapping[int, int] = MappingProxyType({})
    any_round: bool = False
    atomic: bool = False


class Reply(NamedTuple):
    """Answer peers of a `Gather`: vector send[j] [k] goes to peer j, whether or not its own has come. The vectors stay unchanged until the
    answer comes, an `Inbox` without vectors: what goes on without `waits` is told at once, and they stay until peer j sends again. Who is
    in `lost` has no answer; an atomic exchange counts on both ends or, then, on none.
    """

    send: Mapping[int, Tensor]
    waits: bool = True


class Both(NamedTuple):
    """An exchange that hides behind the accumulation: both start at once, and the answer comes when both are over."""

    accumulate: Accumulate
    exchange: Exchange | Gather


class Either(NamedTuple):
    """Accumulate, and gather meanwhile. The answer, `Meanwhile`, comes when the accumulation is over, or vectors enough are there. In the
    latter case the accumulation goes on, whatever is done with the vectors, and the next `Either` waits for it."""

    gather: Gather


Effect: TypeAlias = Accumulate | Exchange | Gather | Reply | Both | Either


class Accumulated(NamedTuple):
    """What one peer's trainer finished for one round.

    Either grad_sum [d], the sum over samples of the gradient (buffers: minus their change), and the step is the algorithm's; or, where
    the trainer stepped on its own, displacement [d]: how far it went from the round's parameters, all 0 if nothing was finished;
    grad_sum is empty then. Valid until the next round closes.
    num_samples: samples in it. num_chunks: chunks in it.
    loss_sum: sum over these samples of the training loss. staleness: one entry per chunk, updates between read and apply.
    close_reason: why the round ended here.
    """

    grad_sum: Tensor
    num_samples: int
    num_chunks: int
    loss_sum: float
    staleness: tuple[int, ...]
    close_reason: str
    displacement: Tensor | None = None


class Meanwhile(NamedTuple):
    """The answer to `Either`. done: None while the accumulation goes on."""

    done: Accumulated | None
    inbox: Inbox


class Inbox(NamedTuple):
    """The answer to an exchange: vectors that came, by sender, and the peers whose edge was lost, with the reason."""

    vectors: Mapping[int, Tensor]
    lost: Mapping[int, str] = MappingProxyType({})


def make_all(effect: Exchange) -> None:
    """Make every vector whole, before any is sent."""
    for j, make in effect.make.items():
        while make() < effect.send[j].numel():
            pass


def delivered(effect: Exchange, vectors: Mapping[int, Tensor], lost: Mapping[int, str]) -> Inbox:
    """The answer to an exchange, for a host whose vectors come at once: they are written where they belong, and taken."""
    places = {}
    for j, vector in vectors.items():
        places[j] = effect.into[j].copy_(vector) if j in effect.into else vector
        if j in effect.take:
            effect.take[j](places[j], vector.numel())
    return Inbox(places, lost)


Answer: TypeAlias = Accumulated | Inbox | tuple[Accumulated, Inbox] | Meanwhile
