"""Mutual information from samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from scipy.special import digamma

from offmanifold import parameters

# Noise between equal values, in spreads.
TIES = 1e-10


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
    x has many dimensions. Both sides are brought to one spread, because the radius is the larger of two distances;
    equal values are told apart by noise of 1e-10 of it, so that of categories, too, the estimate is of their
    information.

    Raises
    ------
    ValueError
        For other than pairs of finite numbers, more of them than ``k``.
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
    for name, values in (("x", x), ("y", ys)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must hold finite numbers.")
    rng = np.random.default_rng(0)
    within_x = _distances(x.reshape(n, -1), rng)
    found = []
    for j in range(ys.shape[1]):
        within_y = _distances(ys[:, j].reshape(n, -1), rng)
        joint = np.maximum(within_x, within_y)
        radius = np.partition(joint, k - 1, axis=1)[:, k - 1 : k]
        counts_x, counts_y = ((within < radius).sum(1) for within in (within_x, within_y))
        found.append(digamma(k) + digamma(n) - (digamma(counts_x + 1) + digamma(counts_y + 1)).mean())
    return np.array(found)


def _distances(rows: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return distances ``(n, n)``, the mean square from the mean as unit; infinite from a row to itself."""
    rows = rows / (np.abs(rows).max() or 1.0)  # squares of very large or small ones are infinite, or nothing
    rows = rows - rows.mean(0)
    rows = rows / (np.sqrt(np.square(rows).sum(1).mean()) or 1.0) + TIES * rng.normal(size=rows.shape)
    distances: npt.NDArray[np.float64] = cdist(rows, rows)
    np.fill_diagonal(distances, np.inf)
    return distances
