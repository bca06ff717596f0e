"""What the closed forms say of a cell, beside what it measured.

Ceiling: the sum of the peers' own rates, as if nobody ever waited, talked or recomputed. A device whose chunks take `nominal` seconds
times a factor f computes b / nominal * E[1/f] samples a second when f is drawn for each round (rounds end by others' words, so all
last about equally long; with local steps, of which each has its own draw, the truth is lower), b / (nominal * E[f]) when f is drawn for
each chunk, times the share of the time in which it does not rest.

Expected speed-up of closing `first` over `barrier`, in samples per second, without a cost of communication (He & Dube 2022 and order
statistics; N peers, m chunks a round, all local steps together):

    one peer k times slower, carry   S = k (N - 1 + 1/k) / N
    one peer k times slower, redo    S = k ((N - 1) m + floor(m / k)) / (N m)
    iid Exp chunks, redo             S = finished fraction * E[max] / E[min] of N sums of m draws
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peer.assembly import make_scenario, make_stragglers, nominal_chunk_seconds
from peer.config import Config
from peer.training.stragglers import Draw, Pause, Slowness


def theory(config: Config, report: Mapping[str, Any], default_chunk_seconds: float = 0.0) -> dict[str, float | None]:
    """Closed forms for the run of this config, beside what its report says. None where there is no formula, or a device without a nominal
    time."""
    scenario = make_scenario(config)
    nominal = nominal_chunk_seconds(config, scenario) or default_chunk_seconds
    peers = make_stragglers(config, scenario).peers
    wall = report.get("wall_seconds") or 0.0
    known = wall > 0 and all(nominal > 0 or slow.trace is not None for slow in peers)
    alive = {crash.peer: min(crash.at / wall, 1.0) for crash in scenario.crash} if known else {}
    rates = [own_rate(slow, nominal, config.chunk_samples, wall) for slow in peers] if known else []
    ceiling: float | None = sum(rate * alive.get(peer, 1.0) for peer, rate in enumerate(rates))
    if not ceiling or not math.isfinite(ceiling):
        ceiling = None
    reached = report["samples"] / wall if wall and report.get("samples") else None
    return {
        "ceiling_samples_per_second": ceiling,
        "reached_samples_per_second": reached,
        "share_of_ceiling": reached / ceiling if ceiling and reached is not None else None,
        "expected_speed_up": expected_speed_up(peers, config.round_chunks, config.in_flight)
        if config.closing == "first"
        else None,
    }


def own_rate(slow: Slowness, nominal: float, chunk_samples: int, wall_seconds: float) -> float:
    """Samples per second of one device on its own."""
    if slow.trace is not None:
        nominal = sum(slow.trace.seconds) / len(slow.trace.seconds)
    rate = chunk_samples / (nominal * slow.constant)
    for draw in slow.draws:
        rate *= _mean_of_inverse(draw)
    return rate * max(1.0 - sum(_resting_share(pause, wall_seconds) for pause in slow.pauses), 0.0)


def _mean_of_inverse(draw: Draw) -> float:
    """E[1/f] of a draw a round; 1/E[f] of a draw a chunk."""
    match draw.kind:
        case "chunk-exp":
            return 1.0 / draw.first
        case "pareto":
            return draw.first / (draw.first + 1.0)
        case "bimodal":
            return 1.0 - draw.first + draw.first / draw.second
        case "shifted-exp" if draw.first == 0:
            return math.inf  # E[1/f] diverges: there is no ceiling
        case _:
            return _integral(lambda u: 1.0 / draw.factor(u), 1.0)


def _resting_share(pause: Pause, wall_seconds: float) -> float:
    """Of [0, wall]."""
    rested, begin = 0.0, pause.begin
    while begin < wall_seconds:
        rested += min(begin + pause.length, wall_seconds) - begin
        if not pause.period:
            break
        begin += pause.period
    return rested / wall_seconds


def expected_speed_up(peers: Sequence[Slowness], num_chunks: int, in_flight: str) -> float | None:
    """S by the closed forms above, None where none of them fits."""
    if any(slow.pauses or slow.trace for slow in peers) or in_flight == "drain" or len(peers) < 2:
        return None
    if not any(slow.draws for slow in peers):
        slowest, *others = sorted((slow.constant for slow in peers), reverse=True)
        return one_slow(len(peers), num_chunks, slowest / others[0], in_flight) if others[0] == others[-1] else None
    same = {(slow.constant, slow.draws) for slow in peers}
    if len(same) == 1 and [draw.kind for draw in peers[0].draws] == ["chunk-exp"] and in_flight == "redo":
        return exponential_chunks(len(peers), num_chunks)
    return None


def one_slow(num_peers: int, num_chunks: int, k: float, in_flight: str) -> float:
    """One of N peers is k times slower than the others."""
    if in_flight == "carry":
        return k * (num_peers - 1 + 1 / k) / num_peers
    finished = math.floor(num_chunks / k + 1e-9)
    return k * ((num_peers - 1) * num_chunks + finished) / (num_peers * num_chunks)


def exponential_chunks(num_peers: int, num_chunks: int) -> float:
    """Every chunk of every peer takes Exp(1): with `redo`, a peer finishes min(m, Poisson count) chunks before the first of N
    Erlang(m) times.

    E[min], E[max] = int_0^inf S(t)^N dt, int_0^inf 1 - F(t)^N dt. By memorylessness of the others given that one has finished at t,
    the finished chunks are m for the first and a count below m, binomially placed, for the rest; summed here as
    E[rate] = N m * fraction with fraction = (1 + (N - 1) E[count_other] / m) / N."""
    from scipy.special import gammainc, gammaincc

    def survival(t: float) -> float:
        """That of Erlang(m): fewer than m chunks by t."""
        return float(gammaincc(num_chunks, t))

    def others_finished(t: float) -> float:
        """Mean chunks of another peer at t, given that it has not finished its m by then, times the density of the first at t. For a
        Poisson count j P(j) = t P(j - 1), and the chance that the other has not finished cancels once."""
        density = math.exp((num_chunks - 1) * math.log(t) - t - math.lgamma(num_chunks))
        return t * float(gammaincc(num_chunks - 1, t)) * num_peers * density * survival(t) ** (num_peers - 2)

    least = _integral(lambda t: survival(t) ** num_peers, math.inf)
    most = _integral(lambda t: 1 - float(gammainc(num_chunks, t)) ** num_peers, math.inf)
    count = _integral(others_finished, 4.0 * num_chunks)
    fraction = (1 + (num_peers - 1) * count / num_chunks) / num_peers
    return fraction * most / least


def _integral(of: Callable[[float], float], until: float) -> float:
    """From 0."""
    from scipy.integrate import quad  # here, as it takes half a second, which every comparison would wait for

    return float(quad(of, 0.0, until)[0])
