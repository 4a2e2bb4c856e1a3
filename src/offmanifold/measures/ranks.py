"""Methods compared over data sets by their ranks: Friedman's test and Nemenyi's critical difference."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import friedmanchisquare, rankdata, studentized_range


def mean_ranks(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return each method's mean rank ``(methods,)`` of values ``(sets, methods)``, high = good: 1 is the best.

    Equal values share the mean of their ranks.
    """
    ranks: npt.NDArray[np.float64] = rankdata(-np.asarray(values, dtype=np.float64), axis=1).mean(0)
    return ranks


def friedman(values: npt.ArrayLike) -> float:
    """Return the p-value of Friedman's test that all methods, three at least, are equally good.

    Parameters
    ----------
    values : (sets, methods)
    """
    array = np.asarray(values, dtype=np.float64)
    if (array == array[:, :1]).all():
        return 1.0
    return float(friedmanchisquare(*array.T).pvalue)


def nemenyi_difference(methods: int, sets: int, *, level: float = 0.95) -> float:
    """Return how far two mean ranks must lie apart for Nemenyi's test to tell the methods apart.

    Notes
    -----
    q √(k(k + 1)/6N) with q the studentised range's quantile for k methods and infinite freedom, over √2 (Demšar 2006).
    """
    if methods < 2 or sets < 1:
        raise ValueError(f"Two methods and one data set are needed at least; got {methods} and {sets}.")
    quantile = float(studentized_range.ppf(level, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * sets))


def indistinguishable(ranks: npt.ArrayLike, difference: float) -> list[tuple[int, int]]:
    """Return the largest groups of methods within ``difference`` of one another, two at least.

    Parameters
    ----------
    ranks : (methods,)
        In ascending order.
    difference : float

    Returns
    -------
    list of (int, int)
        First and last place of each group.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    ends = np.searchsorted(ranks, ranks + difference, side="right") - 1
    # A group that ends where the one before it does lies within it.
    return [
        (first, int(last)) for first, last in enumerate(ends) if last > first and (first == 0 or last > ends[first - 1])
    ]
