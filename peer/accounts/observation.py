"""A run seen from outside: the loss of the mean model over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLUMNS = 512  # of all models at a time, so that their float64 copy stays in the cache


@dataclass(frozen=True, slots=True)
class Observation:
    """seconds since the last peer was ready (when the models had been fetched); rounds: mean over peers; loss: of the mean
    model; both are of the head where it has the model;
    consensus_distance sqrt(mean_i ||x_i - x_mean||^2); samples: in updates, over all peers, as far as was known."""

    seconds: float
    rounds: float
    loss: float
    consensus_distance: float
    samples: int


def mean_model(models: Tensor) -> Tensor:
    """x_mean [d] of models [n, d], summed in float64, so that the mean of equal models is that model, bit for bit."""
    mean = torch.empty(models.shape[1])
    for start in range(0, models.shape[1], COLUMNS):
        columns = slice(start, start + COLUMNS)
        mean[columns] = models[:, columns].double().mean(dim=0)
    return mean


def model_of(models: Tensor, peers: Sequence[int], head: int | None) -> Tensor:
    """The model [d] of a run, of the models [n, d] of these peers: the head's, if there is one and it is among them; else the mean."""
    return models[peers.index(head)] if head is not None and head in peers else mean_model(models)


def consensus_distance(models: Tensor, mean: Tensor) -> float:
    """sqrt(mean_i ||x_i - mean||^2) of models [n, d]; 0.0 exactly if all are equal to the mean. Model by model, without a second [n, d]."""
    difference = torch.empty_like(mean)
    squares = 0.0
    for model in models:
        torch.sub(model, mean, out=difference)
        squares += float(torch.dot(difference, difference))
    return math.sqrt(squares / len(models))
