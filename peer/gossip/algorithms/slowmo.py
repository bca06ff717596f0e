"""SlowMo: slow momentum over local SGD (Wang, Tantia, Ballas, Rabbat 2020, arXiv 1910.00643, algorithm 1).

Each round all peers begin at x(k), make H = --local-steps steps with learning rate lr, and average; then

    u(k+1) = beta u(k) - D / lr,    x(k+1) = x(k) - alpha lr u(k+1),    D = sum D_i / N the mean displacement (`samples`),

alpha the slow learning rate (--outer-lr, 1) and beta the slow momentum (--outer-momentum, 0.7, between the paper's 0.4 and 0.8). With
alpha = 1 and beta = 0 it is local SGD. Kept is v = -lr u, in the paper's sense also where the learning rate changes between rounds:
v <- beta lr(k) / lr(k-1) v + D, x <- x + alpha v. The base optimizer is any `--optimizer`; its own state is kept from round to round.

Bytes and memory: peer/gossip/outer_round.py.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from peer.gossip.algorithm import Outer, PeerState
from peer.gossip.outer_round import OuterAlgorithm


class SlowMo(OuterAlgorithm):
    name: ClassVar[str] = "slowmo"
    outer: ClassVar[Outer | None] = Outer(lr=1.0, momentum=0.7)

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self._last_rate = 0.0

    def outer_step(self, x: Tensor, total: Tensor, scale: float, clock: int) -> None:
        lr, momentum = self.state.outer
        rate = self.state.learning_rate_factor(clock)
        if self._last_rate > 0:  # else nothing has moved yet
            momentum *= rate / self._last_rate
        self._last_rate = rate
        self.velocity.mul_(momentum).add_(total, alpha=scale)
        x.add_(self.velocity, alpha=lr / self.state.num_peers)
