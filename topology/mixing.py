"""With what weight neighbours are averaged: symmetric doubly stochastic matrices W [n, n]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from topology.graph import Matrix, Topology


@dataclass(frozen=True, eq=False)
class MixingMatrix:
    """W [n, n], symmetric, rows sum to 1. Raises ValueError otherwise."""

    weights: Matrix

    def __post_init__(self) -> None:
        if not np.allclose(self.weights, self.weights.T, atol=1e-12) or not np.allclose(
            self.weights.sum(1), 1, atol=1e-9
        ):
            raise ValueError("a mixing matrix is symmetric and its rows sum to 1")
        self.weights.setflags(write=False)

    def self_weight(self, peer: int) -> float:
        return float(self.weights[peer, peer])

    def row(self, peer: int) -> Mapping[int, float]:
        """Weight by neighbour, without self."""
        return {int(j): float(self.weights[peer, j]) for j in np.flatnonzero(self.weights[peer]) if j != peer}

    @cached_property
    def second_eigenvalue(self) -> float:
        """max(|lambda_2|, |lambda_n|): the factor by which disagreement shrinks a round, at worst."""
        magnitudes = np.sort(np.abs(np.linalg.eigvalsh(self.weights)))
        return float(magnitudes[-2])

    @property
    def spectral_gap(self) -> float:
        """1 - second_eigenvalue; more is faster agreement."""
        return 1.0 - self.second_eigenvalue


def metropolis_row(topology: Topology, peer: int) -> Mapping[int, float]:
    """W_ij = 1 / (1 + max(d_i, d_j)) for the neighbours j of one peer (Xiao & Boyd 2004; Lian et al. 2017, arXiv 1705.09056)."""
    degree = topology.degree(peer)
    return {j: 1.0 / (1 + max(degree, topology.degree(j))) for j in topology.neighbors(peer)}


def metropolis(topology: Topology) -> MixingMatrix:
    """The Metropolis-Hastings weights of a graph: non-negative, doubly stochastic, known from the neighbours' degrees."""
    weights = np.zeros((topology.num_peers, topology.num_peers))
    for i in range(topology.num_peers):
        for j, w in metropolis_row(topology, i).items():
            weights[i, j] = w
    np.fill_diagonal(weights, 1 - weights.sum(1))
    return MixingMatrix(weights)


def best_constant(topology: Topology) -> MixingMatrix:
    """W = I - alpha L with alpha = 2 / (lambda_2 + lambda_n) of L (Xiao & Boyd 2004). Self weights may be negative."""
    laplacian = topology.laplacian()
    eigenvalues = np.linalg.eigvalsh(laplacian)
    return MixingMatrix(np.eye(topology.num_peers) - 2 / (eigenvalues[1] + eigenvalues[-1]) * laplacian)


MIXINGS: Mapping[str, Callable[[Topology], MixingMatrix]] = {"metropolis": metropolis, "best-constant": best_constant}
