"""Mutual information from samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from scipy.special import digamma

from offmanifold import parameters


def kraskov(x: npt.ArrayLike, y: npt.ArrayLike, *, k: int = 3) -> float:
    """Mutual information I(x; y) in nats by nearest neighbours (Kraskov et al., 2004, Eq. 8).

    Parameters
    ----------
    x, y : (n,) or (n, d)
        Pairs, row by row; within x and within y distances are Euclidean.
    k : int
        Neighbours: more of them, more bias and less variance.

    Returns
    -------
    float
        May be slightly negative. Time and memory grow with n².

    Notes
    -----
    Biased towards 0 where the information is large for so few rows (it cannot tell much more than log n), and where
    x has many dimensions.
    """
    return float(kraskov_with_each(x, np.asarray(y, dtype=np.float64)[:, None], k=k)[0])


def kraskov_with_each(x: npt.ArrayLike, ys: npt.ArrayLike, *, k: int = 3) -> npt.NDArray[np.float64]:
    """Return :func:`kraskov` of x with each of ``ys`` ``(n, m)`` or ``(n, m, d)``: ``(m,)``; x's distances once."""
    x, ys = (np.asarray(values, dtype=np.float64) for values in (x, ys))
    n = len(x)
    parameters.integer("k", k)
    if len(ys) != n:
        raise ValueError(f"x and y must be pairs; got {n} and {len(ys)} rows.")
    if n <= k:
        raise ValueError(f"k = {k} neighbours need more than {k} rows; got {n}.")
    within_x = _distances(x.reshape(n, -1))
    found = []
    for j in range(ys.shape[1]):
        within_y = _distances(ys[:, j].reshape(n, -1))
        joint = np.maximum(within_x, within_y)
        radius = np.partition(joint, k - 1, axis=1)[:, k - 1 : k]
        counts_x, counts_y = ((within < radius).sum(1) for within in (within_x, within_y))
        found.append(digamma(k) + digamma(n) - (digamma(counts_x + 1) + digamma(counts_y + 1)).mean())
    return np.array(found)


def _distances(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return distances ``(n, n)``, infinite from a row to itself: it is not its own neighbour."""
    distances: npt.NDArray[np.float64] = cdist(rows, rows)
    np.fill_diagonal(distances, np.inf)
    return distances
