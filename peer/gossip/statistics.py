"""Robust location and spread: the one formula behind every adaptive time-out."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median


def median_and_mad(values: Iterable[float]) -> tuple[float, float]:
    """Median and median absolute deviation from it. Raises StatisticsError on no values."""
    numbers = list(values)
    middle = median(numbers)
    return middle, median(abs(x - middle) for x in numbers)
