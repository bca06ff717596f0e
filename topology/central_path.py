"""MATCHA's activation probabilities: max_p lambda_2(sum_j p_j L_j) subject to sum_j p_j = C_b M, 0 <= p_j <= 1.

Theory of operation. This is a semidefinite program with few variables: max t such that S = sum_j p_j L_j - t (I - J) is positive
on the complement of the constant vector. Its optimum is not smooth (lambda_2 is multiple there, as a rule) and often not unique,
so it is approached from inside, along the central path (Boyd & Vandenberghe 2004, chapter 11): the minimum of

    -tau t - log det(S + J) - sum_j log p_j - sum_j log(1 - p_j)

for growing tau. Each of these functions is strictly convex and self-concordant: Newton's method finds the one minimum to nearly
machine precision, on any machine, and it is at most (n - 1 + 2M) / tau below the best t. p is *defined* as the minimum at the last tau.
So p is unique even where the optimum is not, treats matchings alike that the graph does not tell apart, and lies in the
middle of the optimal face rather than at a corner that an LP solver happened to visit.

Numbers are scaled: u = p / C_b, and Laplacians such that lambda_2 at u = 1 is 1.
Legend: n peers, M matchings, E edges; a point is [u_1 .. u_M, t].
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from topology.graph import Matching, Matrix, laplacian

Vector = NDArray[np.float64]
GAP = 1e-7  # of lambda_2, relative
GROWTH = 20.0  # of tau from one center to the next
MAX_STEPS = 60  # of Newton's method to one center
QUADRATIC = 0.25  # below this decrement full steps converge quadratically, without any search


def activation_probabilities(num_peers: int, matchings: tuple[Matching, ...], budget: float) -> Vector:
    """p [M]; within 1e-7 (relative) of the largest possible lambda_2. The matchings together must connect all peers."""
    num = len(matchings)
    if budget >= 1 or num == 1:
        return np.full(num, min(budget, 1.0))
    barrier = _Barrier(num_peers, matchings, 1 / budget)
    point = np.append(np.ones(num), 0.0)
    num_logarithms = num_peers - 1 + 2 * num
    last = num_logarithms / GAP
    tau = float(num_logarithms)
    while True:
        point = _center(barrier, point, tau)
        if tau >= last:
            return budget * point[:-1]
        tau = min(last, tau * GROWTH)


def _center(barrier: _Barrier, point: Vector, tau: float) -> Vector:
    """The minimum of the barrier function for this tau, by Newton's method from a feasible point."""
    before = np.inf
    for _ in range(MAX_STEPS):
        gradient, hessian = barrier.derivatives(point, tau)
        step = _newton_step(gradient, hessian)
        slope = float(gradient @ step)
        decrement = max(0.0, -slope) ** 0.5
        if decrement < 1e-12 or (decrement < 1e-3 and decrement > before / 2):
            return point
        size = 1.0
        if decrement > QUADRATIC:
            now = barrier.value(point, tau)
            while barrier.value(point + size * step, tau) > now + 0.1 * size * slope:
                size /= 2
        before = decrement
        point = point + size * step
    return point


def _newton_step(gradient: Vector, hessian: Matrix) -> Vector:
    """[M + 1]: minimises the quadratic model while sum_j u_j stays. Rows are scaled to unit diagonal first."""
    size = len(gradient)
    scale = 1 / np.sqrt(np.diag(hessian))
    system = np.zeros((size + 1, size + 1))
    system[:size, :size] = hessian * scale[:, None] * scale
    system[: size - 1, size] = system[size, : size - 1] = scale[:-1]
    solution: Vector = np.linalg.solve(system, np.append(-gradient * scale, 0.0))
    return solution[:size] * scale


class _Barrier:
    """The function that the central path minimises. ceiling: the bound 1 / C_b of u."""

    def __init__(self, num_peers: int, matchings: tuple[Matching, ...], ceiling: float) -> None:
        ends = np.array([edge for matching in matchings for edge in matching])
        self._tails, self._heads = ends[:, 0], ends[:, 1]
        self._sizes = [len(matching) for matching in matchings]
        self._starts = [0, *itertools.accumulate(self._sizes)]
        self._ceiling = ceiling
        whole = laplacian(num_peers, (edge for matching in matchings for edge in matching))
        self._unit = 1 / float(np.linalg.eigvalsh(whole)[1])
        self._mean = np.full((num_peers, num_peers), 1 / num_peers)
        self._rest = np.eye(num_peers) - self._mean

    def value(self, point: Vector, tau: float) -> float:
        """Infinite outside the feasible set."""
        u, t = point[:-1], float(point[-1])
        if u.min() <= 0 or u.max() >= self._ceiling:
            return np.inf
        try:
            factor = np.linalg.cholesky(self._matrix(point))
        except np.linalg.LinAlgError:
            return np.inf
        logarithms = 2 * np.log(np.diag(factor)).sum() + np.log(u).sum() + np.log(self._ceiling - u).sum()
        return float(-tau * t - logarithms)

    def derivatives(self, point: Vector, tau: float) -> tuple[Vector, Matrix]:
        """Gradient [M + 1] and Hessian [M + 1, M + 1]. With R = S^-1 on the complement of the constant vector:
        d/du_j = -tr(R L_j), d2/du_j du_k = tr(R L_j R L_k), and t's derivatives are those of -(I - J) in place of L_j."""
        u, num = point[:-1], len(point) - 1
        inverse = np.linalg.inv(self._matrix(point)) - self._mean
        inverse = (inverse + inverse.T) / 2
        gradient = np.append(1 / (self._ceiling - u) - 1 / u - self._products(inverse), float(np.trace(inverse)) - tau)
        hessian = np.empty((num + 1, num + 1))
        for j, (first, end) in enumerate(itertools.pairwise(self._starts)):
            rows = inverse[self._tails[first:end]] - inverse[self._heads[first:end]]
            hessian[j, :num] = self._products(self._unit * rows.T @ rows)
        hessian[:num, num] = hessian[num, :num] = -self._products(inverse @ inverse)
        hessian[num, num] = float((inverse**2).sum())
        hessian[range(num), range(num)] += 1 / u**2 + 1 / (self._ceiling - u) ** 2
        return gradient, (hessian + hessian.T) / 2

    def _matrix(self, point: Vector) -> Matrix:
        """S + J, [n, n]."""
        matrix: Matrix = self._mean - point[-1] * self._rest
        weights = self._unit * np.repeat(point[:-1], self._sizes)
        np.add.at(matrix, (self._tails, self._heads), -weights)
        np.add.at(matrix, (self._heads, self._tails), -weights)
        np.add.at(matrix, (self._tails, self._tails), weights)
        np.add.at(matrix, (self._heads, self._heads), weights)
        return matrix

    def _products(self, matrix: Matrix) -> Vector:
        """tr(L_j X) [M] for a symmetric X [n, n]."""
        diagonal = np.diag(matrix)
        edges = diagonal[self._tails] + diagonal[self._heads] - 2 * matrix[self._tails, self._heads]
        products: Vector = self._unit * np.add.reduceat(edges, self._starts[:-1])
        return products
