"""Injected delays: peers that are slow on purpose, so that algorithms can be compared on one machine.

A spec is `peers=effect`. Peers: `all`, or numbers and ranges such as `0`, `1,2`, `0-3`. Effects on the time of a chunk:

    4x                 always 4 times as long
    spread:1-4         always so many times as long: the first of these peers 1, the last 4, the others evenly between
    exp:1.0            times 1 + Exp(mean 1.0), one draw per peer and batch
    shifted-exp:0.5,2  times 0.5 + Exp(mean 2), one draw per peer and batch
    chunk-exp:1.0      times Exp(mean 1.0), one draw per chunk
    pareto:2           times Pareto(shape 2, minimum 1), one draw per peer and batch; mean a / (a - 1) for a > 1
    jitter:0.01        times 1 + Uniform(0, 0.01), one draw per peer and batch: what real devices that are alike do
    bimodal:0.1,10     10 times as long with probability 0.1, one draw per peer and batch
    trace:FILE         as long as was measured: the file has the seconds of a chunk in each line, # begins a comment
    pause:30s@20s      nothing is computed for 30 s, from 20 s after the run's start (units ms, s, m)
    pause:5s@5s/15s    the same again every 15 s

Several effects on one peer multiply; pauses add up. A round has one batch, or as many as it has local steps; draws depend on
(seed, peer, batch, chunk) only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from topology.randomness import stable_uniform

_UNITS = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0}
_TIME = r"(\d+\.?\d*|\.\d+)(ms|s|m|)"
_NUMBER = r"(\d+\.?\d*|\.\d+)"
_EXAMPLE = "write for instance '0=4x', 'all=exp:1.0', '1,3-5=pareto:2' or '2=pause:30s@20s'"


class StragglerError(ValueError):
    """A spec that says nothing; the message is one sentence with an example."""


class TraceEnded(StragglerError):
    """A trace has fewer chunks than the run."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Measured seconds of one chunk after the other."""

    file: str
    seconds: tuple[float, ...]
    num_lines: int

    def of(self, chunk: int) -> float:
        """Raises TraceEnded."""
        if chunk >= len(self.seconds):
            told = f"the trace ends after {len(self.seconds)} chunks, but the run goes on; make it longer or use --max-rounds"
            raise TraceEnded(f"{self.file}, line {self.num_lines}: {told}.")
        return self.seconds[chunk]


@dataclass(frozen=True, slots=True)
class Draw:
    """A random factor. kind and parameters as in the spec; drawn once a batch, `chunk-exp` once a chunk."""

    kind: str
    first: float
    second: float = 0.0

    def factor(self, uniform: float) -> float:
        """The draw at this quantile in [0, 1)."""
        match self.kind:
            case "exp":
                return 1.0 - self.first * math.log1p(-uniform)
            case "shifted-exp":
                return self.first - self.second * math.log1p(-uniform)
            case "chunk-exp":
                return -self.first * math.log1p(-uniform)
            case "jitter":
                return 1.0 + self.first * uniform
            case "pareto":
                return float((1.0 - uniform) ** (-1.0 / self.first))
            case _:  # bimodal
                return self.second if uniform < self.first else 1.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Rests from `begin` to `begin + length`, seconds since the run's start, and again every `period` (0: once)."""

    begin: float
    length: float
    period: float = 0.0

    def next(self, now: float) -> tuple[float, float]:
        """(begin, end) of the pause that `now` lies in, or else of the next one; (inf, inf) if there is none."""
        begin = self.begin
        if self.period and now >= begin + self.length:
            begin += self.period * math.floor((now - begin) / self.period)
            if now >= begin + self.length:
                begin += self.period
        return (begin, begin + self.length) if now < begin + self.length else (math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Slowness:
    """How much slower one peer is, and when. constant: factor of every chunk; draws: random ones; trace: instead of the nominal
    time."""

    seed: int = 0
    peer: int = 0
    constant: float = 1.0
    draws: tuple[Draw, ...] = ()
    trace: Trace | None = None
    pauses: tuple[Pause, ...] = ()

    @property
    def per_chunk(self) -> bool:
        """Whether chunks of one batch may differ."""
        return self.trace is not None or any(draw.kind == "chunk-exp" for draw in self.draws)

    @property
    def always_alike(self) -> bool:
        """Whether all chunks of the run take equally long, but for pauses."""
        return self.trace is None and not self.draws

    @property
    def per_batch(self) -> bool:
        """Whether chunks of one round may differ that are of different batches."""
        return bool(self.draws)

    def factor(self, batch: int, chunk: int = 0) -> float:
        """How many times its nominal time a chunk of this batch takes; chunk: how many this peer has started before."""
        factor = self.constant
        for which, draw in enumerate(self.draws):
            at = (batch, which, chunk) if draw.kind == "chunk-exp" else (batch, which)
            factor *= draw.factor(stable_uniform(self.seed, f"straggler-{draw.kind}", self.peer, *at))
        return factor

    def chunk_seconds(self, nominal: float, batch: int, chunk: int) -> float:
        """Seconds of work of a chunk. Raises TraceEnded."""
        return (nominal if self.trace is None else self.trace.of(chunk)) * self.factor(batch, chunk)

    def finish(self, begin: float, seconds: float) -> float:
        """When work of so many seconds ends that begins at `begin`, if it rests during the pauses."""
        if not self.pauses:
            return begin + seconds
        now = self._awake(begin)
        while True:
            rest = min(pause.next(now)[0] for pause in self.pauses)
            if now + seconds <= rest:
                return now + seconds
            seconds -= rest - now
            now = self._awake(rest)

    def _awake(self, now: float) -> float:
        """The end of the pause if `now` lies in one, else `now`."""
        while any(begin <= now < end for begin, end in (pause.next(now) for pause in self.pauses)):
            now = max(end for begin, end in (pause.next(now) for pause in self.pauses) if begin <= now < end)
        return now


@dataclass(frozen=True, slots=True)
class Stragglers:
    """The slowness of every peer."""

    peers: tuple[Slowness, ...]

    def for_peer(self, peer: int) -> Slowness:
        return self.peers[peer]


def parse(specs: Sequence[str], num_peers: int, seed: int = 0) -> Stragglers:
    """The delays that the specs describe, for peers 0 .. num_peers-1. Raises StragglerError."""
    peers = [Slowness(seed, peer) for peer in range(num_peers)]
    for spec in specs:
        target, _, effect = spec.partition("=")
        targets = _targets(spec, target.replace(" ", ""), num_peers)
        for place, peer in enumerate(targets):
            peers[peer] = _slowed(peers[peer], spec, effect.strip(), place / max(len(targets) - 1, 1))
    return Stragglers(tuple(peers))


def _targets(spec: str, target: str, num_peers: int) -> list[int]:
    if target == "all":
        return list(range(num_peers))
    peers: set[int] = set()
    for part in target.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part, re.ASCII)
        if not found:
            raise StragglerError(f"straggler {spec!r} names no peers before '='; {_EXAMPLE}.")
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last or last >= num_peers:
            raise StragglerError(f"straggler {spec!r}: {part} is not within peers 0 to {num_peers - 1}; {_EXAMPLE}.")
        peers.update(range(first, last + 1))
    return sorted(peers)


def _slowed(peer: Slowness, spec: str, effect: str, place: float) -> Slowness:
    """place: where the peer stands among those of the spec, 0 the first, 1 the last."""
    if effect.startswith("trace:"):
        return replace(peer, trace=_trace(spec, effect.removeprefix("trace:")))
    effect = effect.replace(" ", "")
    if pause := re.fullmatch(rf"pause:{_TIME}@{_TIME}(?:/{_TIME})?", effect, re.ASCII):
        length, begin, period = (float(pause[i]) * _UNITS[pause[i + 1]] if pause[i] else 0.0 for i in (1, 3, 5))
        if period and length >= period:
            raise StragglerError(
                f"straggler {spec!r}: a pause of {length:g} s can't come every {period:g} s; {_EXAMPLE}."
            )
        return replace(peer, pauses=(*peer.pauses, Pause(begin, length, period)))
    if spread := re.fullmatch(rf"spread:{_NUMBER}-{_NUMBER}", effect, re.ASCII):
        first, last = _above_zero(spec, spread[1]), _above_zero(spec, spread[2])
        return replace(peer, constant=peer.constant * (first + (last - first) * place))
    if constant := re.fullmatch(rf"{_NUMBER}x", effect, re.ASCII):
        return replace(peer, constant=peer.constant * _above_zero(spec, constant[1]))
    return replace(peer, draws=(*peer.draws, _draw(spec, effect)))


def _draw(spec: str, effect: str) -> Draw:
    if one := re.fullmatch(rf"(exp|chunk-exp|pareto|jitter):{_NUMBER}", effect, re.ASCII):
        return Draw(one[1], _above_zero(spec, one[2]))
    if two := re.fullmatch(rf"(shifted-exp|bimodal):{_NUMBER},{_NUMBER}", effect, re.ASCII):
        if two[1] == "bimodal" and float(two[2]) > 1:
            raise StragglerError(f"straggler {spec!r}: {two[2]} is no probability; {_EXAMPLE}.")
        return Draw(two[1], float(two[2]), _above_zero(spec, two[3]))
    if re.search(r"(^|[:@/,])-[\d.]", effect):
        raise StragglerError(f"straggler {spec!r}: times and factors can't be negative; {_EXAMPLE}.")
    raise StragglerError(f"straggler {spec!r} has no known effect after '='; {_EXAMPLE}.")


def _above_zero(spec: str, text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise StragglerError(f"straggler {spec!r}: {text} must be above 0; {_EXAMPLE}.")
    return number


@cache
def _trace(spec: str, file: str) -> Trace:
    try:
        lines = Path(file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StragglerError(
            f"straggler {spec!r}: {file}: {getattr(error, 'strerror', None) or 'not a text file'}."
        ) from None
    seconds = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise StragglerError(f"{file}, line {number}: seconds of a chunk above 0 are expected, not {text!r}.")
        seconds.append(value)
    if not seconds:
        raise StragglerError(f"{file}, line {max(len(lines), 1)}: the trace has no chunk.")
    return Trace(file, tuple(seconds), len(lines))
