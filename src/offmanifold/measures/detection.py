"""How well scores separate outliers from normal rows: AUROC, AUPR, FPR at 95 % TPR, with intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm, rankdata
from sklearn.metrics import average_precision_score

from offmanifold.measures.estimates import Estimate
from offmanifold.parameters import integer, real

Scores = npt.NDArray[np.float64]
# Outliers below which a bootstrap of them says nothing.
FEWEST_FOR_BOOTSTRAP = 5


def _pair(normal: npt.ArrayLike, outliers: npt.ArrayLike) -> tuple[Scores, Scores]:
    """Check two sets of scores (high = normal) and turn them into abnormality."""
    arrays = []
    for name, values in (("normal", normal), ("outliers", outliers)):
        array = -np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or len(array) == 0:
            raise ValueError(f"{name} must be a non-empty 1-D array of scores; got shape {array.shape}.")
        if np.isnan(array).any():
            raise ValueError(f"{name} holds NaN scores.")
        arrays.append(array)
    return arrays[0], arrays[1]


def _placements(normal: npt.ArrayLike, outliers: npt.ArrayLike) -> tuple[Scores, Scores]:
    """Return the share of outliers above each normal row and of normal rows below each outlier, ties counting half."""
    low_scores, high_scores = _pair(normal, outliers)
    n, m = len(low_scores), len(high_scores)
    ranks = rankdata(np.concatenate([high_scores, low_scores]))
    of_outliers = (ranks[:m] - rankdata(high_scores)) / n
    return 1 - (ranks[m:] - rankdata(low_scores)) / m, of_outliers


def auroc(normal: npt.ArrayLike, outliers: npt.ArrayLike, *, level: float = 0.95) -> Estimate:
    """Area under the ROC curve, with an interval that covers with few outliers, too.

    Parameters
    ----------
    normal, outliers : (n,) and (m,)
        Scores, high = normal.
    level : float
        Confidence of the interval.

    Returns
    -------
    Estimate
        The probability that a random outlier scores below a random normal row, ties counting half.

    Notes
    -----
    From the lowest to the highest end of two intervals. DeLong's (1988), on the logit scale and in the O(n log n) form
    of Sun & Xu (2014), needs many rows of each kind; Newcombe's fifth (2006), which solves (A − θ)² = z² V(θ) with the
    variance of exponential scores, does not. For perfect separation the far end is the exact binomial bound for
    min(n, m) successes in as many trials.
    """
    return _of_placements(*_placements(normal, outliers), level)


def _of_placements(of_normals: Scores, of_outliers: Scores, level: float) -> Estimate:
    """Return the AUROC with its interval, given what :func:`_placements` returns."""
    _check_level(level)
    n, m = len(of_normals), len(of_outliers)
    value = float(of_outliers.mean())
    variance = (of_outliers.var(ddof=1) / m if m > 1 else 0.25) + (of_normals.var(ddof=1) / n if n > 1 else 0.25)
    if value in (0.0, 1.0):
        margin = 1 - ((1 - level) / 2) ** (1 / min(n, m))
        return Estimate(value, max(0.0, value - margin), min(1.0, value + margin), level)
    z = float(norm.ppf(0.5 + level / 2))
    logit = math.log(value / (1 - value))
    spread = z * math.sqrt(variance) / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-min(max(logit + s, -700), 700))) for s in (-spread, spread))
    others = _newcombe(value, n, m, z)
    return Estimate(value, min(low, others[0]), max(high, others[1]), level)


def _newcombe(value: float, n: int, m: int, z: float) -> tuple[float, float]:
    """Return the interval of Newcombe's method 5 around an AUROC strictly between 0 and 1."""
    half = (n + m) / 2 - 1

    def off(theta: float) -> float:
        shape = 1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (value - theta) ** 2 - z**2 * theta * (1 - theta) * shape / (n * m)

    return float(brentq(off, 0.0, value)), float(brentq(off, value, 1.0))


def _check_level(level: float) -> None:
    real("level", level, above=0, below=1)


def auroc_difference(
    scores: tuple[npt.ArrayLike, npt.ArrayLike], others: tuple[npt.ArrayLike, npt.ArrayLike], *, level: float = 0.95
) -> Estimate:
    """AUROC of one kind of scores minus that of another, of the same rows, with an interval for pairs.

    Parameters
    ----------
    scores, others : pairs of (n,) and (m,)
        Of normal rows and of outliers, high = normal.
    level : float
        Confidence of the interval.

    Notes
    -----
    Made of the intervals of both AUROCs and their correlation by DeLong et al. (1988), after Zou (2007).
    """
    mine, theirs = _placements(*scores), _placements(*others)
    first, second = _of_placements(*mine, level), _of_placements(*theirs, level)
    for name, one, other in zip(("normal rows", "outliers"), mine, theirs, strict=True):
        if len(one) != len(other):
            raise ValueError(f"others must be of the same {name} as scores; got {len(other):,} and {len(one):,}.")
    value = first.value - second.value
    if np.array_equal(*(rankdata(np.concatenate(_pair(*pair))) for pair in (scores, others))):
        return Estimate(0.0, 0.0, 0.0, level)  # not where both separate perfectly: other rows might tell them apart
    # Zero where one of them has no variance, as with a single row or perfect separation.
    variances = [sum(float(part.var()) / max(1, len(part) - 1) for part in parts) for parts in (mine, theirs)]
    covariance = sum(
        float(np.cov(a, b, bias=True)[0, 1]) / max(1, len(a) - 1) for a, b in zip(mine, theirs, strict=True)
    )
    r = covariance / math.sqrt(variances[0] * variances[1]) if min(variances) > 0 else 0.0

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a**2 + b**2 - 2 * min(max(r, -1.0), 1.0) * a * b))

    below = distance(first.value - first.low, second.high - second.value)
    above = distance(first.high - first.value, second.value - second.low)
    return Estimate(value, max(-1.0, value - below), min(1.0, value + above), level)


def aupr(
    normal: npt.ArrayLike,
    outliers: npt.ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 200,
    random_state: int = 0,
) -> Estimate:
    """Average precision with the outliers as the positive class, with a bootstrap interval.

    Parameters
    ----------
    normal, outliers : (n,) and (m,)
        Scores, high = normal.
    level : float
        Confidence of the interval.
    draws : int
        Bootstrap draws, normal rows and outliers resampled apart.
    random_state : int
        Seed of the bootstrap.

    Notes
    -----
    Of perfect separation the interval has no width (see :func:`auroc`'s), and of five to ten outliers one of 95 % holds
    the truth in some nine of ten cases, of ten normal rows in eight. Of fewer than five of either a bootstrap tells
    next to nothing (one of a single outlier held it in three of ten): the interval is then [0, 1].
    """
    _check_level(level)
    integer("draws", draws)
    negatives, positives = _pair(normal, outliers)

    def average(of_negatives: Scores, of_positives: Scores) -> float:
        labels = np.r_[np.zeros(len(of_negatives)), np.ones(len(of_positives))]
        ranks = rankdata(np.r_[of_negatives, of_positives])  # scores may be infinite
        return float(average_precision_score(labels, ranks))

    rng = np.random.default_rng(random_state)

    def again(part: Scores) -> Scores:
        return part[rng.integers(len(part), size=len(part))]

    values = [average(again(negatives), again(positives)) for _ in range(draws)]
    few = min(len(positives), len(negatives)) < FEWEST_FOR_BOOTSTRAP
    low, high = (0.0, 1.0) if few else np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(average(negatives, positives), float(low), float(high), level)


def fpr_at_tpr(
    normal: npt.ArrayLike,
    outliers: npt.ArrayLike,
    *,
    tpr: float = 0.95,
    level: float = 0.95,
) -> Estimate:
    """Share of normal rows called abnormal at the threshold that catches ``tpr`` of the outliers.

    Parameters
    ----------
    normal, outliers : (n,) and (m,)
        Scores, high = normal.
    tpr : float
        Share of the outliers to be caught.
    level : float
        Confidence of the interval.

    Notes
    -----
    The threshold is a quantile of few outliers, which lies between two of them, whatever their law (by the binomial of
    how many are below it); the interval goes from the lower end of the exact binomial one for normal rows at the
    stricter of these to the upper end at the looser. It holds, and is wide: at 95 % of the outliers, fewer than 72 of
    them bound no threshold from below, and the upper end is 1.
    """
    real("tpr", tpr, above=0, maximum=1)
    _check_level(level)
    low_scores, high_scores = _pair(normal, outliers)
    ordered, m, n = np.sort(high_scores), len(high_scores), len(low_scores)

    def called(threshold: float) -> int:
        return int((low_scores >= threshold).sum())

    below, above = (int(count) for count in binom.ppf([0.5 - level / 2, 0.5 + level / 2], m, 1 - tpr))
    looser, stricter = (ordered[below - 1] if below else -math.inf), (ordered[above] if above < m else math.inf)
    return Estimate(
        called(ordered[min(m - 1, math.floor((1 - tpr) * m + 1e-9))]) / n,
        proportion(called(stricter), n, level=level).low,
        proportion(called(looser), n, level=level).high,
        level,
    )


def proportion(count: int, total: int, *, level: float = 0.95) -> Estimate:
    """``count`` of ``total`` with the exact binomial interval of Clopper & Pearson."""
    interval = binomtest(count, total).proportion_ci(level)
    return Estimate(count / total, float(interval.low), float(interval.high), level)


def detection_report(normal: npt.ArrayLike, outliers: npt.ArrayLike) -> dict[str, Any]:
    """Return AUROC, AUPR and FPR at 95 % TPR, each as a dict with its interval, and the row counts."""
    return {
        "auroc": auroc(normal, outliers).to_json(),
        "aupr": aupr(normal, outliers).to_json(),
        "fpr_at_95_tpr": fpr_at_tpr(normal, outliers).to_json(),
        "normal_rows": len(np.asarray(normal)),
        "outlier_rows": len(np.asarray(outliers)),
    }
