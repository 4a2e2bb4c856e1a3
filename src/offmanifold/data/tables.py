"""Preparation of tables: what is learned from the training rows and applied to every later one."""

from __future__ import annotations

import dataclasses

import numpy as np

from offmanifold.data.inputs import Float32Array, Float64Array

# Beyond a million standard deviations a value counts as a million: squares stay finite in float32.
FARTHEST = 1e6


@dataclasses.dataclass(frozen=True)
class Standardiser:
    """x ↦ (x − mean) / scale, column by column.

    Attributes
    ----------
    mean, scale : (d,) float64
        From the training rows only. A constant column keeps its own unit (scale 1).
    """

    mean: Float64Array
    scale: Float64Array

    @classmethod
    def fit(cls, rows: Float64Array) -> Standardiser:
        """Learn mean and standard deviation from rows ``(n, d)``, of each column's cells that are not missing (NaN)."""
        if np.isnan(rows).any():
            return cls._fit_seen(rows)
        # Dividing by the largest magnitude first keeps squares finite for values near the float64 limit.
        size = np.maximum(np.abs(rows).max(axis=0), np.finfo(float).tiny)
        mean = (rows / size).mean(axis=0) * size
        scale = (rows / size).std(axis=0) * size
        constant = scale <= 1e-12 * size
        return cls(mean, np.where(constant, 1.0, scale))

    @classmethod
    def _fit_seen(cls, rows: Float64Array) -> Standardiser:
        seen = ~np.isnan(rows)
        count = np.maximum(seen.sum(axis=0), 1)
        known = np.where(seen, rows, 0.0)
        size = np.maximum(np.abs(known).max(axis=0), np.finfo(float).tiny)
        mean = (known / size).sum(axis=0) / count
        scale = np.sqrt((np.where(seen, known / size - mean, 0.0) ** 2).sum(axis=0) / count) * size
        return cls(mean * size, np.where(scale <= 1e-12 * size, 1.0, scale))

    @classmethod
    def identity(cls, dimensions: int) -> Standardiser:
        """Leave every column as it is."""
        return cls(np.zeros(dimensions), np.ones(dimensions))

    def transform(self, rows: Float64Array) -> Float32Array:
        """Standardise rows ``(n, d)``; values beyond ±10⁶ are held there, missing ones stay NaN."""
        with np.errstate(over="ignore"):
            standard = rows / self.scale
            standard -= self.mean / self.scale
        return np.clip(standard, -FARTHEST, FARTHEST, out=standard).astype(np.float32)

    def inverse(self, rows: Float64Array) -> Float64Array:
        """Return standardised rows ``(n, d)`` to the user's units."""
        return rows * self.scale + self.mean
