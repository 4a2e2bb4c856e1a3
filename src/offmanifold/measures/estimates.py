"""Numbers with their confidence intervals."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, spearmanr
from scipy.stats import t as student


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval.

    Attributes
    ----------
    value, low, high : float
    level : float
        Confidence of the interval, 0.95 by default.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        size = max((abs(end) for end in (self.value, self.low, self.high) if math.isfinite(end)), default=1.0)
        # Three decimals, or three digits of what is smaller than a tenth.
        decimals = 3 if size >= 0.1 or size == 0 else min(2 - math.floor(math.log10(size)), 12)
        value, low, high = (f"{round(end, decimals) + 0.0:.{decimals}f}" for end in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def to_json(self) -> dict[str, float]:
        """Return a dict of plain floats."""
        return dataclasses.asdict(self)


def mean_of(values: npt.ArrayLike, *, level: float = 0.95) -> Estimate:
    """Mean of independent values ``(n,)`` with Student's interval; of one value, anything may be the mean."""
    values = np.asarray(values, dtype=np.float64)
    mean, n = float(values.mean()), len(values)
    half = math.inf if n < 2 else float(student.ppf(0.5 + level / 2, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, level)


def difference_of_means(values: npt.ArrayLike, others: npt.ArrayLike, *, level: float = 0.95) -> Estimate:
    """Mean of ``values`` minus mean of ``others``, two independent samples, with Welch's interval."""
    first, second = (np.asarray(sample, dtype=np.float64) for sample in (values, others))
    difference = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return Estimate(difference, -math.inf, math.inf, level)
    a, b = (float(sample.var(ddof=1)) / len(sample) for sample in (first, second))
    if a + b == 0:
        return Estimate(difference, difference, difference, level)
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    half = float(student.ppf(0.5 + level / 2, freedom)) * math.sqrt(a + b)
    return Estimate(difference, difference - half, difference + half, level)


def rank_correlation(values: npt.ArrayLike, others: npt.ArrayLike, *, level: float = 0.95) -> Estimate:
    """Spearman's rank correlation of paired values ``(n,)`` with Fisher's interval; 0 where one of them is constant.

    Of fewer than four pairs nothing is said: 0, from −1 to 1. Of values in the same order, or the opposite, it is that
    of the next smaller correlation there can be.
    """
    first, second = (np.asarray(sample, dtype=np.float64) for sample in (values, others))
    if len(first) < 4 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return Estimate(0.0, -1.0, 1.0, level)
    value = float(spearmanr(first, second).statistic)
    # Bonett & Wright (2000): the variance of Fisher's z for ranks.
    half = float(norm.ppf(0.5 + level / 2)) * math.sqrt((1 + value**2 / 2) / (len(first) - 3))
    n = len(first)
    largest = 1 - 12 / (n * (n**2 - 1))  # two neighbours exchanged
    z = math.atanh(min(max(value, -largest), largest))
    low, high = math.tanh(z - half), math.tanh(z + half)
    return Estimate(value, -1.0 if value < -largest else low, 1.0 if value > largest else high, level)
