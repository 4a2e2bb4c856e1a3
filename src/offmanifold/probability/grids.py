"""Integrals over a rectangle by the midpoint rule."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def midpoints(bounds: tuple[tuple[float, float], tuple[float, float]], points: int) -> tuple[Array, float]:
    """Return the midpoints ``(points², 2)`` of a grid over the rectangle, the first axis slowest, and a cell's area."""
    axes = [low + (high - low) * (np.arange(points) + 0.5) / points for low, high in bounds]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    return grid, math.prod((high - low) / points for low, high in bounds)


def log_integral(log_values: Array, area: float) -> float:
    """Return log ∫ exp(f) from f at the midpoints."""
    return float(np.logaddexp.reduce(log_values)) + math.log(area)
