"""NoLoCo: low-communication training without all-reduce (Kolehmainen et al. 2025, arXiv 2506.10911).

In each round all peers fall into random pairs, the same on all of them by the shared seed. Peer i begins at its slow weights x_i(k),
makes H = --local-steps steps, which move it by D_i, and takes a Nesterov step that has a term pulling the pair together:

    delta_i <- alpha delta_i + beta sum_j W_ij D_j - gamma (x_i - sum_j W_ij x_j),    x_i <- x_i + delta_i,

sums over the pair, W_ij = 1/2; alpha = --outer-momentum (0.5) and beta = --outer-lr (0.7) as in the paper, gamma = --consensus-step (1).
The pair's x are known when the round begins, so that half of the traffic hides behind the computation; the D follow when it is closed. Of
an odd number of peers one steps alone. Float buffers, which come after the parameters in x, move as with alpha = 0, beta = gamma = 1.

All peers' mean moves by alpha times its last move plus beta times the mean of all D, whatever the pairs. A lost edge takes its terms away
on both ends, so this stays so. Without D the mean squared distance between peers shrinks if and only if

    gamma (1 + alpha - 2 alpha q) < 2 (1 - alpha^2),    q = N / (2 (N - 1)) for even N, 1/2 for odd N, where one rests,

which follows from the second moments of (x_i, delta_i) over the random pairs: q is what (x_i - its pair's mean) is of x_i on average, both
from the mean of all. With D the distance settles in proportion to lr^2, which is the paper's theorem. More gamma than that is refused.

Bytes a peer sends in a round: 8 d, 4 d of it hidden, whatever N. Memory: delta [p], an inbox, y [d]. Links to all N - 1 others are open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from peer.gossip.algorithm import Algorithm, Outer, PeerState, ScheduleOptions, Score, Update, is_finite, zeros
from peer.gossip.compression import PIECE, pieces
from peer.gossip.delivery import Delivery, mixing_weights
from peer.gossip.effects import Accumulate, Accumulated, Both, Exchange, Inbox, Meanwhile
from topology import RandomPairsSchedule, RoundPlan, Schedule, TopologyError


class NoLoCo(Algorithm):
    name: ClassVar[str] = "noloco"
    delivery: ClassVar[Delivery] = Delivery.EDGE_ATOMIC
    sends_after_close: ClassVar[bool] = False
    steps_locally: ClassVar[bool] = True
    takes_consensus_step: ClassVar[bool] = True
    outer: ClassVar[Outer | None] = Outer(lr=0.7, momentum=0.5)
    why_not_varying: ClassVar[str] = "it pairs all peers at random on its own"
    why_no_random_graphs: ClassVar[str] = "it pairs all peers at random on its own"

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self._delta = zeros(state.num_parameters)
        self._scratch = torch.empty(min(PIECE, state.params.numel()))

    @classmethod
    def make_schedule(cls, options: ScheduleOptions) -> Schedule:
        n = options.topology.num_peers
        if len(options.topology.edges) != n * (n - 1) // 2:
            raise TopologyError(
                f"noloco pairs any two peers at random: use --topology complete, not {options.topology.name}"
            )
        return RandomPairsSchedule(n, options.seed)

    @classmethod
    def why_not_outer(cls, outer: Outer, consensus_step: float, num_peers: int) -> str | None:
        if num_peers < 2:
            return None
        pulled = (num_peers // 2) / (num_peers - 1)  # q
        most = 2 * (1 - outer.momentum**2) / (1 + outer.momentum * (1 - 2 * pulled))
        if consensus_step < most:
            return None
        return (
            f"--consensus-step: with --outer-momentum {outer.momentum:g} and {num_peers} peers noloco drives them apart from"
            f" {most:.3g} on; take less of one of them"
        )

    def round(self, plan: RoundPlan) -> Score:
        x, d = self.state.params, self.state.params.numel()
        sizes = dict.fromkeys(plan.neighbors, d)
        lost: dict[int, str] = {}
        heard: Mapping[int, Tensor] = {}
        if plan.neighbors:
            slow_weights = Exchange(phase=0, send=dict.fromkeys(plan.neighbors, x), receive=sizes, atomic=True)
            answer = yield Both(Accumulate(), slow_weights)
            assert not isinstance(answer, Accumulated | Inbox | Meanwhile)
            done, inbox = answer
            heard, lost = _sound(x, inbox)
        else:
            alone = yield Accumulate()
            assert isinstance(alone, Accumulated)
            done = alone
        distance = self._pull(plan, heard)

        moved, heard = done.displacement, {}
        assert moved is not None
        if plan.neighbors:
            then = yield Exchange(phase=1, send=dict.fromkeys(plan.neighbors, moved), receive=sizes, atomic=True)
            assert isinstance(then, Inbox)
            heard, lost_then = _sound(moved, then)
            lost |= lost_then
        self._step(plan, moved, heard)
        self.state.samples_clock += done.num_samples * self.state.num_peers
        return Update(done, lost, len(plan.neighbors) - len(lost), distance)

    def _pull(self, plan: RoundPlan, heard: Mapping[int, Tensor]) -> float | None:
        """delta <- alpha delta + gamma sum_j W_ij (x_j - x_i), and buffers x_i <- x_i + sum_j W_ij (x_j - x_i). Returns
        sqrt(mean_j ||x_j - x_i||^2), None without any."""
        x, p = self.state.params, self.state.num_parameters
        _, weights = mixing_weights(plan, heard)
        self._delta.mul_(self.state.outer.momentum)
        squares = 0.0
        for start, stop in pieces(x.numel()):
            here, between = x[start:stop], self._scratch[: stop - start]
            inner = max(min(stop, p) - start, 0)  # of the piece, parameters
            gaps = []
            for j in sorted(heard):
                torch.sub(heard[j][start:stop], here, out=between)
                squares += float(torch.dot(between, between))
                self._delta[start : start + inner].add_(between[:inner], alpha=self.state.consensus_step * weights[j])
                gaps.append(between[inner:] * weights[j])
            for gap in gaps:
                here[inner:].add_(gap)
        return math.sqrt(squares / len(heard)) if heard else None

    def _step(self, plan: RoundPlan, moved: Tensor, heard: Mapping[int, Tensor]) -> None:
        """delta <- delta + beta sum_j W_ij D_j, x <- x + delta; buffers move by sum_j W_ij D_j."""
        x, p, lr = self.state.params, self.state.num_parameters, self.state.outer.lr
        own, weights = mixing_weights(plan, heard)
        for weight, displacement in [(own, moved), *((weights[j], heard[j]) for j in sorted(heard))]:
            self._delta.add_(displacement[:p], alpha=lr * weight)
            x[p:].add_(displacement[p:], alpha=weight)
        x[:p].add_(self._delta)


def _sound(mine: Tensor, inbox: Inbox) -> tuple[Mapping[int, Tensor], dict[int, str]]:
    """(the vectors that count, the edges that do not and why). Both ends have the same two vectors, so both decide alike."""
    heard = {j: v for j, v in inbox.vectors.items() if is_finite(v)} if is_finite(mine) else {}
    return heard, {**inbox.lost, **dict.fromkeys(inbox.vectors.keys() - heard.keys(), "corrupt")}
