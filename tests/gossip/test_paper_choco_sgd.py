"""CHOCO-SGD (Koloskova, Stich, Jaggi 2019, arXiv 1902.00340): algorithm 2, and that compression with error feedback costs no accuracy.

What replicas survive is in test_wire.py: D-PSGD with the same formats keeps the same ones.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peer.gossip.algorithm import Algorithm, PeerState
from peer.gossip.algorithms.choco_sgd import ChocoSGD
from peer.gossip.algorithms.dpsgd import DPSGD
from peer.gossip.mixing import RoundedMixing
from tests.gossip.conductor import Conductor
from tests.gossip.test_contract import params, play_all, schedule_of
from tests.gossip.test_paper_qg_dsgdm import OPTIMUM
from tests.gossip.test_papers import mixing_matrix, quadratic
from tests.gossip.test_wire import rounded, spread

N, D = 8, 40
TARGETS = params(7, N, D)


def gradient(k: int, i: int, x: Tensor) -> tuple[Tensor, int]:
    """4 samples of 0.5 ||x - c_i||^2."""
    return 4 * (x - TARGETS[i]), 4


@pytest.mark.parametrize(("wire", "gamma", "close"), [("int8", 1.0, 2e-3), ("top-k:0.1", 0.1, 1e-4)])
@pytest.mark.parametrize("topology", ["ring", "star"])
def test_the_rule_is_the_papers(topology: str, wire: str, gamma: float, close: float) -> None:
    """Algorithm 2 with one replica of each peer, in float64; here there is one on each end of each edge. Next to a half, int8 may round the
    other way."""
    schedule, lr = schedule_of(ChocoSGD, N, topology), 0.05
    start = params(n=1, d=D).expand(N, D)
    conductor = Conductor(ChocoSGD, schedule, start, lr=lr, wire=wire)
    x, replica = start.double(), start.double()
    w = torch.tensor(mixing_matrix(schedule, 0))
    for k in range(40):
        half = x - lr * (x - TARGETS.double())
        replica = replica + torch.stack([rounded(wire, row) for row in (half - replica).float()]).double()
        x = half + gamma * (w @ replica - replica)
        assert [update.lost for update in conductor.play(k, gradient)] == [{}] * N
        torch.testing.assert_close(conductor.params.double(), x, rtol=1e-3, atol=close)


def stall(algorithm: type[Algorithm], wire: str, lr: float) -> float:
    """Root mean square distance of the peers to the optimum of heterogeneous quadratics [5], where a constant step leaves them."""
    conductor = Conductor(
        algorithm, schedule_of(algorithm, N), torch.tensor(OPTIMUM).float().expand(N, -1), lr=lr, wire=wire
    )
    for k in range(round(0.5 / lr)):
        conductor.play(k, quadratic)
    return float((conductor.params - torch.tensor(OPTIMUM).float()).square().sum(1).mean().sqrt())


def test_compression_with_error_feedback_leaves_no_floor() -> None:
    """What is left goes to 0 with the learning rate, as without compression (theorem 4): int8's rounding shrinks with the differences."""
    exact, int8 = ([stall(a, w, lr) for lr in (0.02, 0.005)] for a, w in ((DPSGD, "fp32"), (ChocoSGD, "int8")))
    assert exact[1] < 0.4 * exact[0]
    assert int8[1] < 0.4 * int8[0]
    assert int8[1] == pytest.approx(exact[1], rel=0.25)


class _NoFeedback(ChocoSGD):
    """C(x_j) - C(x_i) in place of replicas: what is left out is left out for good."""

    def __init__(self, state: PeerState) -> None:
        super().__init__(state)
        self.mixing = RoundedMixing(state)


def test_what_is_left_out_comes_later() -> None:
    """Models agree although nine of ten numbers are left out each round; without error feedback only the largest are ever heard of."""
    models = 10 * params(seed=3, n=1, d=D) + params(n=4, d=D)
    spreads = []
    for algorithm in (ChocoSGD, _NoFeedback):
        conductor = Conductor(algorithm, schedule_of(ChocoSGD, 4, "complete"), models, wire="top-k:0.1")
        before = spread(conductor)
        play_all(conductor, 80)
        spreads.append(spread(conductor) / before)
    assert spreads[0] < 0.1
    assert spreads[1] > 0.9
