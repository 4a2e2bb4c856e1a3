"""How well scores separate outliers from normal rows: AUROC, AUPR, FPR at 95 % TPR, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm, rankdata
from sklearn.metrics import average_precision_score

from offmanifold.measures.estimates import Estimate

Scores = npt.NDArray[np.float64]


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
    """Area under the ROC curve, with DeLong's interval on the logit scale.

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
    Variance by DeLong et al. (1988) in the O(n log n) form of Sun & Xu (2014). For perfect separation that
    variance is zero; the far end is then the exact binomial bound for min(n, m) successes in as many trials.
    """
    of_normals, of_outliers = _placements(normal, outliers)
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
    return Estimate(value, low, high, level)


def auroc_difference(
    scores: tuple[npt.ArrayLike, npt.ArrayLike], others: tuple[npt.ArrayLike, npt.ArrayLike], *, level: float = 0.95
) -> Estimate:
    """AUROC of one kind of scores minus that of another, of the same rows, with DeLong's interval for pairs.

    Parameters
    ----------
    scores, others : pairs of (n,) and (m,)
        Of normal rows and of outliers, high = normal.
    level : float
        Confidence of the interval.
    """
    pairs = zip(_placements(*scores), _placements(*others), strict=True)
    of_normals, of_outliers = (mine - theirs for mine, theirs in pairs)
    value = float(of_outliers.mean())
    variance = sum(part.var(ddof=1) / len(part) if len(part) > 1 else 0.25 for part in (of_normals, of_outliers))
    spread = float(norm.ppf(0.5 + level / 2)) * math.sqrt(variance)
    return Estimate(value, max(-1.0, value - spread), min(1.0, value + spread), level)


def aupr(
    normal: npt.ArrayLike,
    outliers: npt.ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 200,
    random_state: int = 0,
) -> Estimate:
    """Average precision with the outliers as the positive class, with a bootstrap interval.

    Parameters are those of :func:`fpr_at_tpr`.
    """
    low_scores, high_scores = _pair(normal, outliers)

    def statistic(negatives: Scores, positives: Scores) -> float:
        labels = np.r_[np.zeros(len(negatives)), np.ones(len(positives))]
        return float(average_precision_score(labels, np.r_[negatives, positives]))

    return _bootstrap(statistic, low_scores, high_scores, level, draws, random_state)


def fpr_at_tpr(
    normal: npt.ArrayLike,
    outliers: npt.ArrayLike,
    *,
    tpr: float = 0.95,
    level: float = 0.95,
    draws: int = 200,
    random_state: int = 0,
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
    draws : int
        Bootstrap draws, normal rows and outliers resampled apart.
    random_state : int
        Seed of the bootstrap.
    """
    low_scores, high_scores = _pair(normal, outliers)

    def statistic(negatives: Scores, positives: Scores) -> float:
        threshold = np.sort(positives)[math.floor((1 - tpr) * len(positives) + 1e-9)]
        return float((negatives >= threshold).mean())

    return _bootstrap(statistic, low_scores, high_scores, level, draws, random_state)


def proportion(count: int, total: int, *, level: float = 0.95) -> Estimate:
    """``count`` of ``total`` with the exact binomial interval of Clopper & Pearson."""
    interval = binomtest(count, total).proportion_ci(level)
    return Estimate(count / total, float(interval.low), float(interval.high), level)


def _bootstrap(
    statistic: Callable[[Scores, Scores], float],
    negatives: Scores,
    positives: Scores,
    level: float,
    draws: int,
    random_state: int,
) -> Estimate:
    rng = np.random.default_rng(random_state)
    values = [
        statistic(
            negatives[rng.integers(len(negatives), size=len(negatives))],
            positives[rng.integers(len(positives), size=len(positives))],
        )
        for _ in range(draws)
    ]
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(statistic(negatives, positives), float(low), float(high), level)


def detection_report(normal: npt.ArrayLike, outliers: npt.ArrayLike) -> dict[str, Any]:
    """Return AUROC, AUPR and FPR at 95 % TPR, each as a dict with its interval, and the row counts."""
    return {
        "auroc": auroc(normal, outliers).to_json(),
        "aupr": aupr(normal, outliers).to_json(),
        "fpr_at_95_tpr": fpr_at_tpr(normal, outliers).to_json(),
        "normal_rows": len(np.asarray(normal)),
        "outlier_rows": len(np.asarray(outliers)),
    }
