"""Two-dimensional worlds whose density is known exactly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from offmanifold.data.inputs import Float64Array

# P3, appendix D.1. The paper prints √2/4 as the covariance; it is the standard deviation.
RADIUS, DEVIATION = 2 * np.sqrt(2), np.sqrt(2) / 4


class EightGaussians:
    """Eight equally heavy Gaussians of covariance 0.125 I on a circle of radius 2√2 (P3, appendix D.1)."""

    def __init__(self) -> None:
        angles = np.arange(8) * np.pi / 4
        self.means = RADIUS * np.stack([np.cos(angles), np.sin(angles)], 1)

    def sample(self, n: int, rng: np.random.Generator) -> Float64Array:
        """Draw ``(n, 2)``."""
        drawn: Float64Array = self.means[rng.integers(8, size=n)] + DEVIATION * rng.normal(size=(n, 2))
        return drawn

    def log_prob(self, rows: npt.ArrayLike) -> Float64Array:
        """Return log p(x) in nats ``(n,)``."""
        squares = ((np.asarray(rows)[:, None] - self.means) ** 2).sum(2) / DEVIATION**2
        log_p: Float64Array = np.logaddexp.reduce(-0.5 * squares, axis=1)
        log_p -= np.log(8 * 2 * np.pi * DEVIATION**2)
        return log_p


class TwoBoxes:
    """Two unit squares far apart, uniform on their union (P3, Fig. 11, whose sizes are not given)."""

    corners = np.array([[-3.0, -0.5], [2.0, -0.5]])

    def sample(self, n: int, rng: np.random.Generator) -> Float64Array:
        """Draw ``(n, 2)``."""
        drawn: Float64Array = self.corners[rng.integers(2, size=n)] + rng.uniform(size=(n, 2))
        return drawn

    def log_prob(self, rows: npt.ArrayLike) -> Float64Array:
        """Return log p(x) in nats ``(n,)``: −log 2 inside, −∞ outside."""
        offsets = np.asarray(rows)[:, None] - self.corners
        inside = ((offsets >= 0) & (offsets <= 1)).all(2).any(1)
        log_p: Float64Array = np.where(inside, -np.log(2.0), -np.inf)
        return log_p
