"""Control words: what peers say to everybody. They flood the base graph, each stamped with whom and which round it is about."""

from __future__ import annotations

import enum
from typing import NamedTuple


class WordKind(enum.IntEnum):
    """READY: all links of `origin` are up. CLOSED: it closed `round`. LEAVING: it takes part up to and excluding `round`, then
    goes. LOST: a neighbour of `origin` lost its link to it and has not heard that it closed `round`."""

    READY = 1
    CLOSED = 2
    LEAVING = 3
    LOST = 4


class Word(NamedTuple):
    """origin: the peer that the word is about; it said the word itself, unless the word is LOST."""

    kind: WordKind
    origin: int
    round: int = 0
