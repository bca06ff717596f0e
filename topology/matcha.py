"""MATCHA: which matchings talk how often, and with what weight (Wang, Sahu, Yang, Joshi, Kar 2019, arXiv 1905.09435).

Legend: n peers, M matchings with Laplacians L_j, p_j activation probabilities, C_b the communication budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize_scalar

from topology.graph import Matching, Matrix, Topology, TopologyError, laplacian
from topology.matching import decompose

Vector = NDArray[np.float64]
TOLERANCE = 1e-7  # of lambda_2, relative
CLUSTER = 1e-4  # eigenvalues nearer than this (relative) are cut together
MAX_CUTS = 600


@dataclass(frozen=True)
class MatchaPlan:
    """lambda2: of sum_j p_j L_j. alpha: mixing parameter. rho: the factor by which the expected squared disagreement shrinks a
    round. sum_j p_j <= communication_budget * M."""

    matchings: tuple[Matching, ...]
    activation_probabilities: tuple[float, ...]
    communication_budget: float
    lambda2: float
    alpha: float
    rho: float


def solve(topology: Topology, budget: float) -> MatchaPlan:
    """Decompose, choose p to maximise lambda_2, then alpha to minimise rho. p is rounded to 1e-6 within the budget.
    Where the optimum is not unique, machines may differ in which one they find; a schedule's digest covers p, so they notice.

    Raises TopologyError if the budget is not in (0, 1].
    """
    if not 0 < budget <= 1:
        raise TopologyError(f"--budget: {budget:g} is outside (0, 1]; 1 lets every matching talk in every round")
    matchings = decompose(topology)
    laplacians = np.stack([laplacian(topology.num_peers, m) for m in matchings])
    exact = activation_probabilities(laplacians, budget)
    p = _rounded(exact, budget * len(matchings))
    alpha, rho = mixing_parameter(laplacians, p)
    lambda2 = float(np.linalg.eigvalsh(np.tensordot(p, laplacians, 1))[1])
    return MatchaPlan(matchings, tuple(map(float, p)), budget, lambda2, alpha, rho)


def _rounded(p: Vector, total: float) -> Vector:
    """p [M] to six digits; what rounding adds beyond the budget is taken from the largest."""
    rounded = np.clip(np.round(p, 6), 0.0, 1.0)
    excess = float(rounded.sum()) - total
    if excess > 0:
        rounded[np.argmax(rounded)] -= np.ceil(excess * 1e6) / 1e6
    return np.array([round(float(x), 6) for x in rounded])


def activation_probabilities(laplacians: Matrix, budget: float) -> Vector:
    """argmax_p lambda_2(sum_j p_j L_j) subject to sum p_j <= C_b M, 0 <= p_j <= 1; laplacians [M, n, n]; returns p [M].

    A concave problem, solved by cutting planes: any U >= 0 with trace 1 on the complement of the constant vector bounds
    lambda_2(p) <= sum_j p_j <U, L_j>. Cuts come from the lowest eigenvector and from the projector on the cluster of lowest
    eigenvalues, which is what makes graphs with symmetries converge at once. Queries lie halfway between the best point and the
    linear program's, which keeps the method from jumping. Starts from the uniform p, so symmetric graphs stay symmetric.
    """
    num = len(laplacians)
    best = np.full(num, min(budget, 1.0))
    best_value = -1.0
    cuts: list[Vector] = []
    query = best
    while len(cuts) < MAX_CUTS:
        value, fresh = _cuts(laplacians, query)
        cuts += fresh
        if value > best_value:
            best, best_value = query, value
        if budget >= 1.0:
            break
        bound, corner = _linear_program(np.stack(cuts), budget * num)
        if bound - best_value <= TOLERANCE * max(bound, 1e-12):
            break
        query = 0.5 * (best + corner)
    return best


def _cuts(laplacians: Matrix, p: Vector) -> tuple[float, list[Vector]]:
    """lambda_2 at p, and rows [M] of cuts <U, L_j> that touch or nearly touch it."""
    eigenvalues, vectors = np.linalg.eigh(np.tensordot(p, laplacians, 1))
    lambda2 = float(eigenvalues[1])
    rows = [_row(laplacians, vectors[:, 1:2])]
    for width in (CLUSTER, 0.05):
        size = int(np.searchsorted(eigenvalues, lambda2 + width * max(eigenvalues[-1], 1e-12))) - 1
        if size > 1:
            rows.append(_row(laplacians, vectors[:, 1 : 1 + size]))
            rows += [_row(laplacians, vectors[:, k : k + 1]) for k in range(2, min(1 + size, 4))]
    return lambda2, rows


def _row(laplacians: Matrix, vectors: Matrix) -> Vector:
    """<U, L_j> for U the projector on the columns of vectors [n, r], divided by r."""
    products = np.einsum("jab,br->jar", laplacians, vectors, optimize=True)
    return np.einsum("ar,jar->j", vectors, products, optimize=True) / vectors.shape[1]


def _linear_program(cuts: Matrix, total: float) -> tuple[float, Vector]:
    """max t subject to t <= cuts @ p, sum p <= total, 0 <= p <= 1. Returns (t, p)."""
    num_cuts, num = cuts.shape
    objective = np.zeros(num + 1)
    objective[-1] = -1.0
    above = np.hstack([-cuts, np.ones((num_cuts, 1))])
    budget_row = np.append(np.ones(num), 0.0)[None]
    result = linprog(
        objective,
        A_ub=np.vstack([above, budget_row]),
        b_ub=np.append(np.zeros(num_cuts), total),
        bounds=[(0.0, 1.0)] * num + [(None, None)],
        method="highs",
    )
    if not result.success:  # pragma: no cover - the program is feasible and bounded by construction
        raise ArithmeticError(f"HiGHS: {result.message}")
    solution = np.asarray(result.x, dtype=np.float64)
    return float(solution[-1]), solution[:-1]


def mixing_parameter(laplacians: Matrix, p: Vector) -> tuple[float, float]:
    """(alpha, rho): alpha minimises rho(alpha) = lambda_max(I - 2 alpha Lbar + alpha^2 (Lbar^2 + 2 Ltilde) - J).

    Lbar = sum p_j L_j, Ltilde = sum p_j (1 - p_j) L_j, J = 11'/n. Convex in alpha.
    """
    n = laplacians.shape[1]
    mean = np.tensordot(p, laplacians, 1)
    second = mean @ mean + 2 * np.tensordot(p * (1 - p), laplacians, 1)
    rest = np.eye(n) - np.full((n, n), 1 / n)

    def rho(alpha: float) -> float:
        return float(np.linalg.eigvalsh(rest - 2 * alpha * mean + alpha**2 * second)[-1])

    largest = float(np.linalg.eigvalsh(mean)[-1])
    found = minimize_scalar(rho, bounds=(0.0, 2.0 / largest), method="bounded", options={"xatol": 1e-9})
    alpha = round(float(found.x), 9)
    return alpha, rho(alpha)


def periodic_rho(topology: Topology, budget: float) -> float:
    """The baseline that lets all matchings talk together with probability C_b: rho = 1 - C_b * 4 l_2 l_n / (l_2 + l_n)^2."""
    eigenvalues = np.linalg.eigvalsh(topology.laplacian())
    low, high = float(eigenvalues[1]), float(eigenvalues[-1])
    return 1 - budget * 4 * low * high / (low + high) ** 2
