"""A fitted detector and normal rows, in the one form that every check works with."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from offmanifold.data import outliers
from offmanifold.data.inputs import Float64Array, Rows, evenly
from offmanifold.data.tables import Preparation, Standardiser
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.explanations import energy_and_slope

# Neighbours and components of the two plain methods that stand beside every detector.
NEIGHBOURS, KEPT_VARIANCE = 5, 0.95


class Patient:
    """What is examined.

    Half of the normal rows is a reference: the two plain methods learn from it, and distances are taken to it. The
    other half is scored, and synthetic outliers are made from it. Columns are prepared by the reference, whatever
    the detector itself does with them; in missing cells stands the mean, for the plain methods know none.

    Parameters
    ----------
    detector : OutlierDetector
        Fitted.
    X : array-like or frame, optional
        Normal rows.
    most : int
        Of which so many at most are used, evenly spread.
    seed : int
    """

    def __init__(self, detector: OutlierDetector, X: Any = None, *, most: int = 1000, seed: int = 0) -> None:
        self.detector, self.seed = detector, seed
        self.is_image = detector.spec_.kind == "image"
        self.given = 0
        empty = np.zeros((0, *detector.spec_.shape))
        block = empty
        if X is not None:
            rows = Rows(X, detector.spec_, "the detector")
            self.given = len(rows)
            block = rows.take(evenly(len(rows), most)).astype(np.float64)
            block = block[np.random.default_rng(seed).permutation(len(block))]
        self.count = len(block)
        self._made: dict[str, Any] = {}
        half = len(block) // 2
        details = detector.spec_.details
        self.scaler: Standardiser | Preparation = (
            Standardiser.identity(1)
            if self.is_image
            else Preparation.fit(block[:half], details)
            if details is not None
            else Standardiser.fit(block[:half])
            if half
            else Standardiser.identity(empty.shape[1])
        )
        self.reference, self.normal = (
            np.nan_to_num(self.scaler.transform(part)) for part in (block[:half], block[half:])
        )

    def generator(self) -> torch.Generator:
        """Return a fresh generator: every check draws the same numbers whichever checks run."""
        return torch.Generator().manual_seed(self.seed)

    def users(self, rows: Float64Array | Any) -> Float64Array:
        """Return standardised rows ``(n, *shape)`` as the detector takes them from a user."""
        return self.detector.spec_.arrange(self.scaler.inverse(np.asarray(rows, dtype=np.float64)))

    def score(self, rows: Any) -> Float64Array:
        """Return the detector's scores of standardised rows; what is not finite counts as most abnormal."""
        scores: Float64Array = np.nan_to_num(self.detector.score_samples(self.users(rows)), nan=-np.finfo(float).max)
        return scores

    @functools.cached_property
    def scores(self) -> Float64Array:
        """The detector's scores of the normal rows."""
        return self.score(self.normal)

    def made(self, family: str) -> Any:
        """Return synthetic outliers of a family, as many as there are normal rows; several checks look at them."""
        if family not in self._made:
            self._made[family] = outliers.make(family, torch.from_numpy(self.normal), self.generator()).numpy()
        return self._made[family]

    # --- the plain methods ------------------------------------------------------------------------------

    @functools.cached_property
    def _neighbours(self) -> NearestNeighbors:
        return NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(self.reference))).fit(_flat(self.reference))

    @functools.cached_property
    def _components(self) -> PCA:
        flat = _flat(self.reference)
        varies = flat.std() > 0
        with np.errstate(invalid="ignore"):  # a share of no variance at all
            return PCA(KEPT_VARIANCE if varies else 1, svd_solver="full").fit(flat)

    def neighbour_scores(self, rows: Any) -> Float64Array:
        """Return minus the distance to the fifth neighbour in the reference ``(n,)``."""
        farthest: Float64Array = self._neighbours.kneighbors(_flat(rows))[0][:, -1]
        return -farthest

    def component_scores(self, rows: Any) -> Float64Array:
        """Return minus the squared error that the principal components of 95 % of the variance leave ``(n,)``."""
        flat = _flat(rows)
        left = flat - self._components.inverse_transform(self._components.transform(flat))
        squares: Float64Array = (left**2).sum(1)
        return -squares

    @functools.cached_property
    def own_nearest(self) -> tuple[Float64Array, Any]:
        """:meth:`nearest` of the normal rows."""
        return self.nearest(self.normal)

    def nearest(self, rows: Any) -> tuple[Float64Array, Any]:
        """Return the distance to the nearest row of the reference, and that row."""
        distances, places = self._neighbours.kneighbors(_flat(rows), n_neighbors=1)
        return distances[:, 0], self.reference[places[:, 0]]

    # --- inside the detector ----------------------------------------------------------------------------

    def slope(self, prepared: Tensor) -> Tensor | None:
        """Return the energy's gradient at rows as the network takes them, or None where it has none."""
        _, found = energy_and_slope(self.detector, prepared)
        return None if found is None else torch.nan_to_num(found).cpu()

    @property
    def column_of(self) -> Any:
        """Which of a table's columns each standardised cell belongs to."""
        if isinstance(self.scaler, Preparation):
            return self.scaler.owner
        return np.arange(self.normal.shape[1])

    @property
    def units(self) -> Tensor:
        """How much one of our standard deviations is in what the network takes: 1, or a column's own."""
        if self.is_image or self.detector._standardiser is not None:
            return torch.ones(())
        return torch.from_numpy(self.scaler.scale).float()

    def prepared(self, rows: Any) -> Tensor:
        """Return standardised rows as the network takes them."""
        return self.detector._prepare(self.scaler.inverse(np.asarray(rows, dtype=np.float64)))

    def from_prepared(self, prepared: Tensor) -> Any:
        """Return standardised rows of what the network takes."""
        block = prepared.double().cpu().numpy()
        if self.detector._standardiser is not None:
            block = self.detector._standardiser.inverse(block)
        return self.scaler.transform(block)


def _flat(rows: Any) -> Float64Array:
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
