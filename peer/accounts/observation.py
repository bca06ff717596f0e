"""A run seen from outside: the loss of the mean model over time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Observation:
    """seconds since the last peer was ready (when the models had been fetched); rounds: mean over peers; loss of the mean model;
    consensus_distance sqrt(mean_i ||x_i - x_mean||^2); samples: in updates, over all peers, as far as was known."""

    seconds: float
    rounds: float
    loss: float
    consensus_distance: float
    samples: int


def mean_model(models: Tensor) -> Tensor:
    """x_mean [d] of models [n, d], summed in float64, so that the mean of equal models is that model, bit for bit."""
    return models.mean(dim=0, dtype=torch.float64).float()


def consensus_distance(models: Tensor, mean: Tensor) -> float:
    """sqrt(mean_i ||x_i - mean||^2) of models [n, d]."""
    return math.sqrt(float(torch.sum((models - mean) ** 2)) / len(models))
