"""Nearest neighbours and principal components: the two plain methods that stand beside every detector.

Both have a detector's ``fit`` and ``score_samples``, high = normal, and take rows of any shape ``(n, *shape)``.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

Float64Array = npt.NDArray[np.float64]


class Neighbours:
    """Minus the distance to the k-th nearest training row.

    Parameters
    ----------
    k : int
        Five is PyOD's default too. With fewer training rows it is the farthest of them.
    standardise : bool
        Whether columns are brought to mean 0 and variance 1 first, by the training rows; where they are not, distances
        are in the rows' own units.
    """

    def __init__(self, k: int = 5, *, standardise: bool = False) -> None:
        self.k = k
        self.scaler = StandardScaler(with_mean=standardise, with_std=standardise)

    def fit(self, train: npt.ArrayLike) -> Self:
        """Remember the training rows ``(n, *shape)``."""
        rows = self.scaler.fit_transform(_flat(train))
        self._known = NearestNeighbors(n_neighbors=min(self.k, len(rows))).fit(rows)
        return self

    def score_samples(self, rows: npt.ArrayLike) -> Float64Array:
        """Return minus the distance to the k-th neighbour ``(n,)``."""
        farthest: Float64Array = self._known.kneighbors(self.scaler.transform(_flat(rows)))[0][:, -1]
        return -farthest

    def nearest(self, rows: npt.ArrayLike) -> tuple[Float64Array, npt.NDArray[np.intp]]:
        """Return the distance to the nearest training row ``(n,)``, and that row's place among them ``(n,)``."""
        distances, places = self._known.kneighbors(self.scaler.transform(_flat(rows)), n_neighbors=1)
        return distances[:, 0], places[:, 0]

    def around(self, rows: npt.ArrayLike) -> npt.NDArray[np.intp]:
        """Return the places of the k nearest training rows ``(n, k)``."""
        places: npt.NDArray[np.intp] = self._known.kneighbors(self.scaler.transform(_flat(rows)))[1]
        return places


class Components:
    """Minus the squared error, summed over a row's cells, that principal components leave; nothing is standardised.

    Parameters
    ----------
    kept : int or float
        How many components, as far as the training rows have so many, or the share of their variance that is kept.
    """

    def __init__(self, kept: float = 0.95) -> None:
        self.kept = kept

    def fit(self, train: npt.ArrayLike) -> Self:
        """Find the components of the training rows ``(n, *shape)``."""
        rows = _flat(train)
        if isinstance(self.kept, int):
            kept: float = min(self.kept, len(rows) - 1)
            solver = "full" if len(rows) < 1000 else "covariance_eigh"
        else:
            # Of no variance at all there is no share.
            kept, solver = self.kept if rows.std() > 0 else 1, "full"
        with np.errstate(invalid="ignore"):  # the same, where cells differ but rows do not
            self._found = PCA(kept, svd_solver=solver).fit(rows)
        return self

    def score_samples(self, rows: npt.ArrayLike) -> Float64Array:
        """Return minus the squared error ``(n,)``."""
        flat = _flat(rows)
        squares: Float64Array = ((flat - self._found.inverse_transform(self._found.transform(flat))) ** 2).sum(1)
        return -squares


def _flat(rows: Any) -> Float64Array:
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
