"""Decisions whose error rates hold: split-conformal p-values, thresholds, false-discovery control."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, betabinom

from offmanifold.parameters import InvalidParameter, real

# Beyond this many calibration rows a false-alarm rate gets no truer, and the rows are worth more in training.
MOST_CALIBRATION_ROWS = 5000


def p_values(calibration: npt.ArrayLike, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Split-conformal p-values: (1 + #{calibration ≤ score}) / (n + 1).

    Parameters
    ----------
    calibration : (n,)
        Scores (high = normal) of normal rows that took no part in training.
    scores : (m,)
        Scores to judge.

    Returns
    -------
    (m,) float64
        For a row exchangeable with the calibration rows, P(p ≤ α) ≤ α for every α (Vovk et al., 2005).

    Raises
    ------
    ValueError
        For scores that are not a number: they would pass as the most normal of all.
    """
    known, judged = (np.asarray(values, dtype=np.float64) for values in (calibration, scores))
    for name, values in (("calibration", known), ("scores", judged)):
        if np.isnan(values).any():
            raise ValueError(f"{name} holds {int(np.isnan(values).sum()):,} NaN scores.")
    at_most = np.searchsorted(np.sort(known), judged, side="right")
    return (1 + at_most) / (len(known) + 1)


def smallest_rate(rows: int) -> float:
    """Return the smallest false-alarm rate above zero that ``rows`` calibration rows can promise."""
    return 1 / (rows + 1)


def rows_needed(rate: float) -> int:
    """Return how many calibration rows a false-alarm rate takes."""
    return max(1, math.ceil(1 / rate - 1e-9) - 1)


def may_be_called(rows: int, rate: float) -> int:
    """Return how many of ``rows`` calibration rows have a p-value of at most ``rate`` (+ 1e-9), where none tie."""
    return min(math.floor(rate * (rows + 1) + 1e-9), rows)


def threshold(calibration: npt.ArrayLike, rate: float) -> float:
    """Return t such that score < t exactly where the p-value is at most ``rate`` (+ 1e-9); −inf if none can be."""
    ordered = np.sort(np.asarray(calibration, dtype=np.float64))
    allowed = may_be_called(len(ordered), rate)
    return float(ordered[allowed - 1]) if allowed else -math.inf


def rate_range(rows: int, rate: float, level: float = 0.95) -> tuple[float, float]:
    """Return between what rates a single model's false-alarm rate lies, asked for ``rate``, in ``level`` of all fits.

    ``rate`` is what models have on average. Given its calibration rows, of scores without ties, a model's follows
    Beta(k, rows + 1 − k), where k = ⌊rate · (rows + 1)⌋ (Vovk, 2012). (0, 0) where none can be promised.
    """
    k = may_be_called(rows, rate)
    low, high = beta.ppf([0.5 - level / 2, 0.5 + level / 2], k, rows + 1 - k) if k else (0.0, 0.0)
    return float(low), float(high)


def p_of_alarms(count: int, rows: int, calibration_rows: int, rate: float) -> float:
    """Return the probability that ``count`` or more of ``rows`` exchangeable rows are called abnormal at ``rate``.

    Given the calibration rows, a model's false-alarm rate follows a beta law: see :func:`rate_range`.
    """
    k = may_be_called(calibration_rows, rate)
    return float(betabinom.sf(count - 1, rows, k, calibration_rows + 1 - k)) if k else 1.0


def false_discoveries(p: npt.ArrayLike, rate: float) -> npt.NDArray[np.bool_]:
    """Say which rows are outliers with at most ``rate`` false ones among them, on average.

    Benjamini & Hochberg (1995). Valid for conformal p-values that share one calibration set, which are
    positively dependent (Bates et al., 2023).

    Parameters
    ----------
    p : (m,)
        p-values.
    rate : float
        False-discovery rate, in (0, 1).

    Raises
    ------
    ValueError
        ``p`` holds something else, such as scores.

    Notes
    -----
    Of m rows none is called unless k of them have a p-value of at most k · rate / m, and no conformal p-value is below
    1/(n + 1): see :func:`discoverable`.
    """
    p = np.asarray(p, dtype=np.float64)
    return p <= discovery_threshold(p, rate)


def discovery_threshold(p: npt.ArrayLike, rate: float) -> float:
    """Return the largest p-value that Benjamini–Hochberg rejects, or −1 where it rejects none."""
    real("rate", rate, above=0, below=1)
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        got = f"shape {p.shape}" if p.ndim != 1 else f"values from {p.min():.3g} to {p.max():.3g}"
        raise ValueError(f"p must be p-values (m,) between 0 and 1, such as a detector's p_values(X); got {got}.")
    ordered = np.sort(p)
    # Conformal p-values lie on a lattice, where the two sides can be equal but for rounding.
    bounds = rate * np.arange(1, len(ordered) + 1) / max(1, len(ordered))
    allowed = np.flatnonzero(ordered <= bounds * (1 + 1e-9))
    return float(ordered[allowed[-1]]) if len(allowed) else -1.0


def discoverable(rows: int, calibration_rows: int, rate: float) -> int:
    """Return how many of ``rows``, each more extreme than all calibration rows, can be called by themselves.

    With fewer, others that are nearly as extreme must help.
    """
    return math.ceil(rows / (rate * (calibration_rows + 1)) - 1e-9)


def split_sizes(rows: int, rate: float, fraction: float | None) -> tuple[int, int]:
    """Return how many rows go to calibration and to early stopping.

    Calibration gets ``fraction`` of the rows; where none is given, a fifth, but at most
    :data:`MOST_CALIBRATION_ROWS`, or what ``rate`` takes if that is more and at most half of the rows. Early stopping
    gets a tenth, at most 1 000.

    Raises
    ------
    InvalidParameter
        Nothing would be left to learn from.
    """
    if fraction is None:
        calibration = min(math.ceil(0.2 * rows), MOST_CALIBRATION_ROWS)
        needed = rows_needed(rate)
        if calibration < needed <= rows // 2:
            calibration = needed
    else:
        calibration = math.ceil(fraction * rows)
    stopping = min(max(1, rows // 10), 1000)
    if calibration + stopping >= rows:
        if fraction is None:
            raise InvalidParameter(f"{rows} rows are too few to learn from, stop by and calibrate with.")
        raise InvalidParameter(
            f"calibration_fraction={fraction:g} keeps {calibration} of {rows} rows aside; with the {stopping} that "
            "training stops by, none are left to learn from. Give less."
        )
    return calibration, stopping


def split(
    rows: int, rate: float, fraction: float | None, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return which rows calibrate, which choose the weights and which train: three sorted arrays of indices."""
    calibration, stopping = split_sizes(rows, rate, fraction)
    order = np.random.default_rng(seed).permutation(rows)
    parts = np.split(order, [calibration, calibration + stopping])
    return np.sort(parts[0]), np.sort(parts[1]), np.sort(parts[2])
