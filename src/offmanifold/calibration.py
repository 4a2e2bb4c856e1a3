"""Decisions whose error rates hold: split-conformal p-values, thresholds, false-discovery control."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from offmanifold.parameters import real

# Beyond this many calibration rows p-values get no better, and the rows are worth more in training.
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
    """
    ordered = np.sort(np.asarray(calibration, dtype=np.float64))
    at_most = np.searchsorted(ordered, np.asarray(scores, dtype=np.float64), side="right")
    return (1 + at_most) / (len(ordered) + 1)


def smallest_rate(rows: int) -> float:
    """Return the smallest false-alarm rate above zero that ``rows`` calibration rows can promise."""
    return 1 / (rows + 1)


def rows_needed(rate: float) -> int:
    """Return how many calibration rows a false-alarm rate takes."""
    return max(1, math.ceil(1 / rate - 1e-9) - 1)


def threshold(calibration: npt.ArrayLike, rate: float) -> float:
    """Return t such that score < t exactly where the p-value is at most ``rate`` (+ 1e-9); −inf if none can be."""
    ordered = np.sort(np.asarray(calibration, dtype=np.float64))
    position = min(math.floor(rate * (len(ordered) + 1) + 1e-9), len(ordered))
    return float(ordered[position - 1]) if position >= 1 else -math.inf


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
    """
    p = np.asarray(p, dtype=np.float64)
    return p <= discovery_threshold(p, rate)


def discovery_threshold(p: npt.ArrayLike, rate: float) -> float:
    """Return the largest p-value that Benjamini–Hochberg rejects, or −1 where it rejects none."""
    real("rate", rate, above=0, below=1)
    ordered = np.sort(np.asarray(p, dtype=np.float64))
    # Conformal p-values lie on a lattice, where the two sides can be equal but for rounding.
    bounds = rate * np.arange(1, len(ordered) + 1) / max(1, len(ordered))
    allowed = np.flatnonzero(ordered <= bounds * (1 + 1e-9))
    return float(ordered[allowed[-1]]) if len(allowed) else -1.0


def split_sizes(rows: int, rate: float, fraction: float | None) -> tuple[int, int]:
    """Return how many rows go to calibration and to early stopping.

    Calibration gets ``fraction`` of the rows; where none is given, a fifth, or what ``rate`` takes if that
    is more but at most half of the rows, and never more than :data:`MOST_CALIBRATION_ROWS`. Early stopping
    gets a tenth, at most 1 000.
    """
    if fraction is None:
        calibration = math.ceil(0.2 * rows)
        needed = rows_needed(rate)
        if calibration < needed <= rows // 2:
            calibration = needed
        calibration = min(calibration, MOST_CALIBRATION_ROWS)
    else:
        calibration = math.ceil(fraction * rows)
    stopping = min(max(1, rows // 10), 1000)
    return min(calibration, rows - stopping - 1), stopping


def split(
    rows: int, rate: float, fraction: float | None, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return which rows calibrate, which choose the weights and which train: three sorted arrays of indices."""
    calibration, stopping = split_sizes(rows, rate, fraction)
    order = np.random.default_rng(seed).permutation(rows)
    parts = np.split(order, [calibration, calibration + stopping])
    return np.sort(parts[0]), np.sort(parts[1]), np.sort(parts[2])
