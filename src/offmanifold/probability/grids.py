"""Integrals over a rectangle by the midpoint rule, and over a decoder's standard normal latent."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

Array = npt.NDArray[np.float64]


def midpoints(bounds: tuple[tuple[float, float], tuple[float, float]], points: int) -> tuple[Array, float]:
    """Return the midpoints ``(points², 2)`` of a grid over the rectangle, the first axis slowest, and a cell's area."""
    axes = [low + (high - low) * (np.arange(points) + 0.5) / points for low, high in bounds]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    return grid, math.prod((high - low) / points for low, high in bounds)


def log_integral(log_values: Array, area: float) -> float:
    """Return log ∫ exp(f) from f at the midpoints."""
    return float(np.logaddexp.reduce(log_values)) + math.log(area)


def path_nodes(
    decode: Callable[[Array], Array],
    variance: npt.ArrayLike,
    *,
    reach: float = 8.0,
    panel: float = 2.0,
    order: int = 16,
    resolution: int = 2**14,
) -> tuple[Array, Array]:
    """Return nodes z and log weights for ∫ φ(z) N(x; decode(z), variance I) dz, whatever x: ``(m,)`` each.

    Gauss–Legendre rules on panels of equal length along the decoder's path, in units of the noise: where the decoder is
    steep the integrand is a spike that even nodes would miss. The prior beyond ``reach`` holds 10⁻¹⁵ of the mass.

    Parameters
    ----------
    decode : callable
        (m, 1) → (m, d).
    variance : float or (d,)
    panel : float
        Length of a panel, √(|Δdecode|²/variance + Δz²).
    order : int
        Nodes of a panel.
    resolution : int
        Points at which the path is measured. Zero is among them, and is a panel's end: decoders have kinks there.
    """
    fine = np.linspace(-reach, reach, resolution + 1)
    path = np.column_stack([decode(fine[:, None]) / np.sqrt(variance), fine])
    steps = np.sqrt((np.diff(path, axis=0) ** 2).sum(1))
    # A change of speed counts as well: a panel half flat and half steep would be resolved nowhere.
    changes = np.abs(np.diff(np.log(steps), append=math.log(steps[-1])))
    length = np.concatenate([[0.0], np.cumsum(steps + changes)])
    middle = length[resolution // 2]
    ends = [
        np.interp(np.linspace(start, stop, 1 + math.ceil((stop - start) / panel)), length, fine)
        for start, stop in ((0.0, middle), (middle, length[-1]))
    ]
    edges = np.concatenate([ends[0], ends[1][1:]])
    places, weights = np.polynomial.legendre.leggauss(order)
    halves = np.diff(edges)[:, None] / 2
    z = (edges[:-1, None] + halves * (1 + places)).reshape(-1)
    return z, np.log(halves * weights).reshape(-1) - 0.5 * z**2 - 0.5 * math.log(2 * math.pi)


def gaussian_log_prob(rows: Array, means: Array, variance: npt.ArrayLike) -> Array:
    """Return log N(row; mean, variance I) of every row ``(n, d)`` at every mean ``(m, d)``: ``(n, m)`` nats.

    ``variance`` is one number or one for each dimension.
    """
    variances = np.broadcast_to(np.asarray(variance, dtype=np.float64), rows.shape[1:])
    deviation = np.sqrt(variances)
    log_p: Array = cdist(rows / deviation, means / deviation, "sqeuclidean")
    log_p *= -0.5
    log_p -= 0.5 * np.log(2 * np.pi * variances).sum()
    return log_p


def log_mixture(rows: Array, means: Array, log_weights: Array, variance: npt.ArrayLike) -> Array:
    """Return log Σ weight N(row; mean, variance I): ``(n,)`` nats, from means ``(m, d)`` and log weights ``(m,)``."""
    found = np.full(len(rows), -np.inf)
    # Blocks that fit into a processor's cache.
    for part in range(0, len(means), 4096):
        some, weights = means[part : part + 4096], log_weights[part : part + 4096]
        size = 2**17 // len(some)
        for start in range(0, len(rows), size):
            log_p = gaussian_log_prob(rows[start : start + size], some, variance)
            log_p += weights
            most = log_p.max(1, keepdims=True)
            log_p -= np.maximum(most, -np.finfo(np.float64).max)  # which is −∞ of rows infinitely far
            # e⁻⁵⁰ of the largest is nothing, and exponentials that underflow take ten times as long.
            np.maximum(log_p, -50.0, out=log_p)
            total = np.log(np.exp(log_p, out=log_p).sum(1)) + most[:, 0]
            found[start : start + size] = np.logaddexp(found[start : start + size], total)
    return found
