"""With what weight neighbours are averaged: symmetric doubly stochastic matrices W [n, n]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from topology.graph import Matrix, Topology, TopologyError


@dataclass(frozen=True, eq=False)
class MixingMatrix:
    """W [n, n], symmetric, rows sum to 1 (both to 1e-9); a read-only copy. Raises TopologyError otherwise."""

    weights: Matrix

    def __post_init__(self) -> None:
        weights = np.array(self.weights, dtype=np.float64)
        if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
            raise TopologyError(
                f"a mixing matrix is square, not {list(weights.shape)}; give a row and a column to each peer"
            )
        if not np.allclose(weights, weights.T, rtol=0, atol=1e-9):
            raise TopologyError("a mixing matrix is symmetric; give both ends of an edge the same weight")
        if not np.allclose(weights.sum(1), 1, rtol=0, atol=1e-9):
            raise TopologyError("the rows of a mixing matrix sum to 1; give what is left over to the self weight")
        weights.setflags(write=False)
        object.__setattr__(self, "weights", weights)

    def self_weight(self, peer: int) -> float:
        return float(self.weights[peer, peer])

    def row(self, peer: int) -> Mapping[int, float]:
        """Weight by neighbour, without self."""
        return {int(j): float(self.weights[peer, j]) for j in np.flatnonzero(self.weights[peer]) if j != peer}

    @cached_property
    def second_eigenvalue(self) -> float:
        """max(|lambda_2|, |lambda_n|): the factor by which disagreement shrinks a round, at worst."""
        eigenvalues = np.linalg.eigvalsh(self.weights)  # ascending; the last is 1, of the constant vector
        return float(max(abs(eigenvalues[0]), abs(eigenvalues[-2])))

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
