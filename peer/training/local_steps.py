"""Steps of a peer's own between two exchanges (local SGD: Stich 2019, arXiv 1805.09767; Lin et al. 2018, arXiv 1808.07217).

A round starts at y = x_i(k). After every m chunks, a batch of B samples, y makes one step of the task's optimizer with the mean of
their gradients, and the next chunks are computed there. What the round contributes is the displacement y - x_i(k).

Where the round was closed in the middle of a batch, the G over n samples that are finished are one last, smaller step, weighted as the
update of a round without local steps is: `samples` G / B, `peers` G / n. The state of the optimizer (momenta) belongs to y's steps and
is kept from round to round.

The learning rate's clock counts the cluster's samples. A peer does not know how far the others are within a round, so it takes the clock
at the round's start plus its own samples of the round times the number of peers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peer.gossip.algorithm import Optimizer


class LocalSteps:
    """params: y [d]; `optimizer` steps on it. steps: H, of a full round. batch_chunks: m. batch_size: B. No thread, no clock."""

    def __init__(
        self,
        params: Tensor,
        optimizer: Optimizer,
        *,
        steps: int,
        batch_chunks: int,
        batch_size: int,
        weighting: str,
        num_peers: int,
    ) -> None:
        self.params = params
        self.steps = steps
        self.batch_chunks = batch_chunks
        self._optimizer = optimizer
        self._batch_size = batch_size
        self._weighting = weighting
        self._num_peers = num_peers
        self._start = params
        self._clock = 0

    def open(self, start: Tensor, samples_clock: int) -> None:
        """A round begins at `start` x_i(k) [d], which must stay as it is until the round is closed: y takes it over."""
        self.params.copy_(start)
        self._start, self._clock = start, samples_clock

    def step(self, grad_sum: Tensor, num_samples: int, round_samples: int) -> None:
        """One step with the gradients of a batch, or of what is finished of one: grad_sum [d], which may be
        scaled in place, over num_samples.
        round_samples: this peer's in the round so far, these among them."""
        divisor = self._batch_size if self._weighting == "samples" else num_samples
        self._optimizer.step(grad_sum, self._clock + self._num_peers * round_samples, 1.0 / divisor)

    def displacement(self, out: Tensor) -> Tensor:
        """y - x_i(k), into out [d]."""
        return torch.sub(self.params, self._start, out=out)
