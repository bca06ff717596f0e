"""DiLoCo: distributed low-communication training (Douillard et al. 2023, arXiv 2311.08105, algorithm 1).

Each round all peers begin at x(k), make H = --local-steps steps of the inner optimizer (--optimizer; the paper's is AdamW, H = 500) and
average; the outer gradient is Delta = -D, D = sum D_i / N the mean displacement (`samples`), and the outer optimizer Nesterov momentum:

    v(k+1) = mu v(k) + Delta,    x(k+1) = x(k) - eta (Delta + mu v(k+1)),

eta = --outer-lr (0.7) and mu = --outer-momentum (0.9), as in the paper. With eta = 1 and mu = 0 it is local SGD. The inner optimizer's
state is kept from round to round and never exchanged.

Bytes and memory: peer/gossip/outer_round.py.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from peer.gossip.algorithm import Outer
from peer.gossip.outer_round import OuterAlgorithm


class DiLoCo(OuterAlgorithm):
    name: ClassVar[str] = "diloco"
    outer: ClassVar[Outer | None] = Outer(lr=0.7, momentum=0.9)

    def outer_step(self, x: Tensor, total: Tensor, scale: float, clock: int) -> None:
        lr, momentum = self.state.outer
        step = lr / self.state.num_peers
        self.velocity.mul_(momentum).add_(total, alpha=scale)
        x.add_(self.velocity, alpha=step * momentum)
        x.add_(total, alpha=step * scale)
