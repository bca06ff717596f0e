"""What a peer says that it does, in a word."""

from __future__ import annotations

from peer.wire.gossip_pb2 import State


def state_name(state: int) -> str:
    """starting, training, finished or draining; unknown to a peer of another version."""
    known = state in State.values() and state != State.STATE_UNSPECIFIED
    return State.Name(State.ValueType(state)).removeprefix("STATE_").lower() if known else "unknown"
