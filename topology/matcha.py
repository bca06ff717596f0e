"""MATCHA: which matchings talk how often, and with what weight (Wang, Sahu, Yang, Joshi, Kar 2019, arXiv 1905.09435).

Two problems, one after the other. The activation probabilities p maximise lambda_2 of the expected Laplacian within the budget:
`topology.central_path` solves that. The mixing parameter alpha then minimises rho, a convex function of one variable.
Both are rounded to a few digits, so that peers on machines with other linear algebra libraries get the same numbers.

Legend: n peers, M matchings with Laplacians L_j, p_j activation probabilities, C_b the communication budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from topology.central_path import Vector, activation_probabilities
from topology.graph import Matching, Matrix, Topology, TopologyError, laplacian
from topology.matching import decompose


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


#: By digest of the graph. What `learn` was given, for the processes that peers of one machine are.
Solutions = Mapping[str, MatchaPlan]
_learned: dict[str, MatchaPlan] = {}


def learn(solutions: Solutions) -> None:
    """Solutions that another process of this machine found: `solve` does not look for them again."""
    _learned.update(solutions)


@lru_cache(maxsize=64)  # peers that are played in one process have the same
def solve(topology: Topology, budget: float) -> MatchaPlan:
    """Decompose, choose p to maximise lambda_2, then alpha to minimise rho.

    p has six decimals (more for a budget below 0.1) and keeps to the budget, alpha has six significant digits; lambda2 and rho are
    those of the rounded numbers. Raises TopologyError if the budget is not in (0, 1].
    """
    _check_budget(budget)
    learned = _learned.get(topology.digest()) if _learned else None
    if learned is not None and learned.communication_budget == budget:
        return learned
    n, matchings = topology.num_peers, decompose(topology)
    p = _rounded(activation_probabilities(n, matchings, budget), budget)
    mean, spread = np.zeros((n, n)), np.zeros((n, n))
    for chance, matching in zip(p, matchings, strict=True):
        each = laplacian(n, matching)
        mean += chance * each
        spread += chance * (1 - chance) * each
    alpha, rho = mixing_parameter(mean, spread)
    lambda2 = float(np.linalg.eigvalsh(mean)[1])
    return MatchaPlan(matchings, tuple(map(float, p)), budget, lambda2, alpha, rho)


def _check_budget(budget: float) -> None:
    if not 0 < budget <= 1:
        raise TopologyError(f"--budget: {budget:g} is outside (0, 1]; 1 lets every matching talk in every round")


def _rounded(p: Vector, budget: float) -> Vector:
    """p [M] in whole units of 1e-6 (a tenth for each power of ten that the budget lies below 0.1).

    What rounding adds beyond the budget is taken back unit by unit from the last matchings, by index and not by size: which of two
    equal p is the larger in the 16th digit differs between machines.
    """
    per_unit = 10 ** min(15, 6 + max(0, math.ceil(-math.log10(budget)) - 1))
    units = [round(float(x) * per_unit) for x in p]
    excess = sum(units) - math.floor(budget * len(p) * per_unit + 1e-3)
    for j in reversed(range(len(units))):
        if excess > 0 and units[j] > 0:
            units[j] -= 1
            excess -= 1
    return np.array([min(x, per_unit) / per_unit for x in units])


def mixing_parameter(mean: Matrix, spread: Matrix) -> tuple[float, float]:
    """(alpha, rho): alpha minimises rho(alpha) = lambda_max(I - 2 alpha Lbar + alpha^2 (Lbar^2 + 2 Ltilde) - J).

    mean: Lbar = sum p_j L_j, [n, n]. spread: Ltilde = sum p_j (1 - p_j) L_j, [n, n]. J = 11'/n. Convex in alpha, 1 at 0 and at least
    1 from 2 / lambda_n(Lbar) on, so the minimum lies between.
    """
    from scipy.optimize import minimize_scalar  # here, as it takes half a second, which every command would wait for

    n = len(mean)
    second = mean @ mean + 2 * spread
    rest = np.eye(n) - 1 / n

    def rho(alpha: float) -> float:
        return float(np.linalg.eigvalsh(rest - 2 * alpha * mean + alpha**2 * second)[-1])

    largest = float(np.linalg.eigvalsh(mean)[-1])
    found = minimize_scalar(rho, bounds=(0.0, 2.0 / largest), method="bounded", options={"xatol": 1e-9 / largest})
    alpha = float(f"{float(found.x):.6g}")
    return alpha, rho(alpha)


def periodic_rho(topology: Topology, budget: float) -> float:
    """The baseline that lets all matchings talk together with probability C_b: rho = 1 - C_b * 4 l_2 l_n / (l_2 + l_n)^2."""
    _check_budget(budget)
    eigenvalues = np.linalg.eigvalsh(topology.laplacian())
    low, high = float(eigenvalues[1]), float(eigenvalues[-1])
    return 1 - budget * 4 * low * high / (low + high) ** 2
