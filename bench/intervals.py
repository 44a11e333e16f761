"""Means with 95 % confidence intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and half the width of its 95 % interval (Student's t; infinite for one sample)."""

    mean: float
    half_width: float

    @property
    def clear(self) -> bool:
        """Whether zero is outside the interval."""
        return abs(self.mean) > self.half_width


def estimate(samples: Sequence[float]) -> Estimate:
    """The mean of independent samples, one a seed. ValueError: there is none."""
    if not samples:
        raise ValueError("no sample to take the mean of")
    mean = statistics.fmean(samples)
    if len(samples) == 1 or math.isnan(mean):
        return Estimate(mean, math.inf)
    spread = statistics.stdev(samples) / math.sqrt(len(samples))
    return Estimate(mean, float(student.ppf(0.975, len(samples) - 1)) * spread)


def paired(ones: Sequence[float], others: Sequence[float]) -> Estimate:
    """The mean of ones - others, seed by seed: what the seeds have in common cancels."""
    return estimate([one - other for one, other in zip(ones, others, strict=True)])
