"""Base-(k+1) graphs: exact consensus of any number of peers in few rounds, nobody talking to more than k others in any of them
(Takezawa, Sato, Bao, Niwa, Yamada 2023, arXiv 2305.11420).

Three constructions, each made of the one before:

    hyper-hypercube  n = n_1 ... n_L with n_l <= k + 1 and L minimal: in round l groups of n_l peers average exactly (algorithm 1)
    simple base      n = sum_l a_l (k+1)^p_l, its digits: part l has a_l (k+1)^p_l peers. Every part averages itself as a
                     hyper-hypercube; then part j, one part after the other, hands its mean to all later parts, each of whose peers
                     takes one peer out of each of the a_j blocks of part j; then each block of (k+1)^p_j peers averages itself
                     (algorithm 2)
    base             n = p q, q the greatest divisor of n without a prime above k + 1: q simple base graphs of p peers beside each
                     other, then p hyper-hypercubes of q peers across them; or the simple base of all, if that is shorter (algorithm 3)

A round is a set of edges with weights; what is left of a peer's weights is its own. Every matrix is symmetric and doubly stochastic,
and the product of all of them is 11'/n. Peers that rest while others finish average in groups, as in the paper: exact consensus
does not need it, training between the rounds gains by it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import lru_cache

from topology.graph import Edge, TopologyError, check_enough

#: Of one round: weight by edge i < j.
Weights = dict[Edge, float]


def base_graph(num_peers: int, k: int) -> list[Weights]:
    """The rounds of the Base-(k+1) graph, after which everybody has the mean. Raises TopologyError."""
    check_enough("base", num_peers)
    if not 1 <= k < num_peers:
        raise TopologyError(
            f"--base-k: {k} is not between 1 and {num_peers - 1} for {num_peers} peers; it is how many others a peer talks to in a round"
        )
    peers = range(num_peers)
    smooth = _smooth_part(num_peers, k)
    size = num_peers // smooth
    blocks = [peers[b * size : (b + 1) * size] for b in range(smooth)]
    rounds = _beside([_simple(block, k) for block in blocks])
    rounds += _beside([_hyper_hypercube(across, k) for across in zip(*blocks, strict=True)])
    whole = _simple(peers, k)
    return whole if len(whole) < len(rounds) else rounds


def _hyper_hypercube(peers: Sequence[int], k: int) -> list[Weights]:
    """Raises ValueError if the number of peers has a prime factor above k + 1."""
    rounds, stride = [], 1
    for factor in _fewest_factors(len(peers), k + 1):
        starts = [s for s in range(len(peers)) if s // stride % factor == 0]
        rounds.append(_averaged([peers[s + stride * m] for m in range(factor)] for s in starts))
        stride *= factor
    return rounds


def _simple(peers: Sequence[int], k: int) -> list[Weights]:
    if _smooth_part(len(peers), k) == len(peers):
        return _hyper_hypercube(peers, k)
    parts = _parts(peers, k + 1)
    within = [_hyper_hypercube([i for block in blocks for i in block], k) for blocks in parts]
    rounds = [_merged(part[m % len(part)] for part in within if part) for m in range(len(within[0]))]
    hand_overs = len(parts) - 1
    last = 1 + len(_hyper_hypercube(parts[0][0], k))
    return rounds + [
        _hand_over(parts, within, step, k) if step < hand_overs else _settle(parts, within, step, k)
        for step in range(last)
    ]


def _parts(peers: Sequence[int], base: int) -> list[list[Sequence[int]]]:
    """The blocks of each part, by the digits of the number of peers: part l has a_l blocks of base^p_l peers."""
    digits, rest = [], len(peers)
    while rest:
        rest, digit = divmod(rest, base)
        digits.append(digit)
    parts, begin = [], 0
    for power, digit in reversed(list(enumerate(digits))):
        size = base**power
        if digit:
            parts.append([peers[begin + a * size : begin + (a + 1) * size] for a in range(digit)])
            begin += digit * size
    return parts


def _hand_over(parts: Sequence[Sequence[Sequence[int]]], within: Sequence[list[Weights]], step: int, k: int) -> Weights:
    """Part number `step` gives its mean to all later parts; what is left of it averages in groups, the earlier parts settle."""
    blocks = parts[step]
    size = sum(map(len, blocks))
    later = [i for part in parts[step + 1 :] for block in part for i in block]
    weight = size / (size + len(later)) / len(blocks)
    weights: Weights = {}
    for number, i in enumerate(later):
        for block in blocks:
            j = block[-1 - number]
            weights[min(i, j), max(i, j)] = weight
    resting = [i for block in blocks for i in block[: len(block) - len(later)]]
    groups = _averaged(resting[b : b + k + 1] for b in range(0, len(resting), k + 1))
    return _merged([weights, groups, _settle(parts, within, step, k, until=step)])


def _settle(
    parts: Sequence[Sequence[Sequence[int]]],
    within: Sequence[list[Weights]],
    step: int,
    k: int,
    until: int | None = None,
) -> Weights:
    """The blocks of the first `until` parts average themselves; a part that is smaller than k + 1 does so as a whole."""
    weights: list[Weights] = []
    for number, blocks in enumerate(parts[:until]):
        since = step - min(number + 1, len(parts) - 1)
        rounds = [_hyper_hypercube(block, k) for block in blocks] if len(blocks[0]) > 1 else [within[number]]
        weights += [each[since % len(each)] for each in rounds if each]
    return _merged(weights)


def _averaged(groups: Iterable[Sequence[int]]) -> Weights:
    """All members of a group get the mean of the group."""
    return {(min(i, j), max(i, j)): 1.0 / len(group) for group in groups for i, j in itertools.combinations(group, 2)}


def _merged(several: Iterable[Weights]) -> Weights:
    return {edge: weight for weights in several for edge, weight in weights.items()}


def _beside(several: Sequence[list[Weights]]) -> list[Weights]:
    """Graphs of equally many rounds on disjoint peers, at the same time."""
    return [_merged(each) for each in zip(*several, strict=True)]


def _smooth_part(n: int, k: int) -> int:
    """The greatest divisor of n whose prime factors are all at most k + 1."""
    smooth = 1
    for factor in range(2, min(k + 1, n) + 1):
        while n % factor == 0:
            smooth, n = smooth * factor, n // factor
    return smooth


@lru_cache(maxsize=4096)
def _fewest_factors(n: int, most: int) -> tuple[int, ...]:
    """n as a product of as few factors of at most `most` as possible, ascending. Raises ValueError if there are none."""
    if n == 1:
        return ()
    best: tuple[int, ...] | None = None
    for factor in range(min(n, most), 1, -1):
        if n % factor == 0:
            try:
                found = (*_fewest_factors(n // factor, most), factor)
            except ValueError:
                continue
            best = found if best is None or len(found) < len(best) else best
    if best is None:
        raise ValueError(f"{n} has a prime factor above {most}")
    return tuple(sorted(best))
