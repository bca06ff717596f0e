"""The event log of one peer: what happened to it, and what digests tell of the others. Bounded; the time is an argument.

The same event within `AGAIN_SECONDS` is counted, not written again, so that nobody can flood the log with one sentence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from peer.gossip.digest import Digest, Held

#: Events kept.
KEPT = 200
AGAIN_SECONDS = 30.0
#: A peer is a straggler when it finishes less than this share of its quota, until it finishes more than that.
STRAGGLES_BELOW = 0.5
KEEPS_UP_ABOVE = 0.75
#: So many digests in a row must say so.
IN_A_ROW = 2
#: States that are no event.
BEGINNING = ("starting", "training")
#: A peer stands still when a round lasts so many seconds of its training, and so many times as long as the one before.
STILL_SECONDS = 15.0
STILL_TIMES = 4.0
#: A peer is silent when its digest is older than so many intervals.
SILENT_AFTER = 6.0


@dataclass(slots=True)
class Event:
    """id: one for each event. number: grows with every event and with every repetition. at: wall clock, seconds since 1970.
    kind: lost, back, left, silent, heard, refused, edge, straggler, keeps-up, still, goes-on or state. peer: whom it is about.
    times: how often it was said."""

    id: int
    number: int
    at: float
    kind: str
    peer: int | None
    text: str
    times: int = 1


@dataclass(slots=True)
class _Step:
    """The newest round that a peer has told of: since when, and how long the one before took, in seconds of its training."""

    round: int
    since: float
    before: float = 0.0
    noted: bool = False


class Chronicle:
    """See the head of this file. peer: whose log it is."""

    def __init__(self, peer: int) -> None:
        self.events: deque[Event] = deque(maxlen=KEPT)
        self._peer = peer
        self._number = 0
        self._silent: set[int] = set()
        self._slow: dict[int, int] = {}  # peer -> digests in a row that say other than what is known of it
        self._stragglers: set[int] = set()
        self._steps: dict[int, _Step] = {}

    def note(self, kind: str, peer: int | None, text: str, at: float) -> None:
        self._number += 1
        for event in reversed(self.events):
            if at - event.at > AGAIN_SECONDS:
                break
            if (event.kind, event.peer, event.text) == (kind, peer, text):
                event.number, event.at, event.times = self._number, at, event.times + 1
                self.events.remove(event)
                self.events.append(event)
                return
        self.events.append(Event(self._number, self._number, at, kind, peer, text))

    def digest(self, before: Digest | None, after: Digest, state: str, at: float) -> None:
        """What a new digest tells against the one before. state: its name. That a run begins is no event. The peer's own links are
        left out: of those it knows more."""
        who = after.origin
        if who in self._silent:
            self._silent.discard(who)
            self.note("heard", who, f"peer {who} is heard of again", at)
        if before is not None and after.round < before.round:
            self.note("state", who, f"peer {who} has started again", at)
        elif state not in BEGINNING and (before is None or before.state != after.state):
            self.note("state", who, f"peer {who} is {state}", at)
        if who != self._peer:
            self._links(before, after, at)
        self._pace(after, at)
        self._progress(after, state, at)

    def silence(self, held: Mapping[int, Held], gone: set[int], every: float, now: float, at: float) -> None:
        """Note who has not been heard of for long. gone: who said goodbye. now: on the clock of `held`."""
        for who, (_, said_at) in held.items():
            if who == self._peer or who in self._silent or who in gone or now - said_at <= SILENT_AFTER * every:
                continue
            self._silent.add(who)
            self.note("silent", who, f"peer {who} has not been heard of for {now - said_at:.0f} s", at)

    def _links(self, before: Digest | None, after: Digest, at: float) -> None:
        had = set(before.lost_links) if before is not None else set()
        for other in sorted(set(after.lost_links) - had):
            self.note("lost", other, f"peer {after.origin} lost its edge to peer {other}", at)
        for other in sorted(had - set(after.lost_links)):
            self.note("back", other, f"peer {after.origin} has its edge to peer {other} again", at)

    def _pace(self, digest: Digest, at: float) -> None:
        who, share = digest.origin, digest.finished_fraction
        straggles = who in self._stragglers
        if not digest.round or not (share > KEEPS_UP_ABOVE if straggles else share < STRAGGLES_BELOW):
            self._slow.pop(who, None)
            return
        self._slow[who] = self._slow.get(who, 0) + 1
        if self._slow[who] < IN_A_ROW:
            return
        del self._slow[who]
        if straggles:
            self._stragglers.discard(who)
            self.note("keeps-up", who, f"peer {who} keeps up again", at)
        else:
            self._stragglers.add(who)
            self.note("straggler", who, f"peer {who} is a straggler: it finishes {share:.0%} of its quota", at)

    def _progress(self, digest: Digest, state: str, at: float) -> None:
        """A standstill is noted once. It is told by the origin's own seconds, which a pause between two digests does not lengthen."""
        who, step = digest.origin, self._steps.get(digest.origin)
        if state != "training" or step is None or digest.round < step.round:
            self._steps[who] = _Step(digest.round, digest.seconds)
            return
        lasts = digest.seconds - step.since
        if digest.round > step.round:
            if step.noted:
                self.note("goes-on", who, f"peer {who} finishes rounds again", at)
            self._steps[who] = _Step(digest.round, digest.seconds, lasts / (digest.round - step.round))
        elif not step.noted and lasts >= max(STILL_SECONDS, STILL_TIMES * step.before):
            step.noted = True
            self.note("still", who, f"peer {who} has finished no round for {lasts:.0f} s", at)
