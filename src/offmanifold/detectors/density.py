"""The density that an energy of two columns is: what it takes to divide by, on a grid."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from offmanifold import parameters
from offmanifold.data.inputs import Float64Array
from offmanifold.data.tables import Standardiser
from offmanifold.detectors.chains import Range
from offmanifold.probability.grids import log_integral, midpoints

# log Ω by the grid and by one of half as many points may differ by so many nats.
COARSE = 0.1


class GridDensityMixin:
    """For detectors whose score is minus an energy with a temperature, trained by chains on x."""

    @property
    def temperature_(self: Any) -> float:
        """T of the fitted density."""
        check_is_fitted(self, "module_")
        return float(self.module_.temperature())

    def log_prob(
        self: Any, X: Any, *, normalise: str = "grid", bounds: tuple[Range, Range] | None = None, points: int = 400
    ) -> Float64Array:
        """Return log p(x) of two-dimensional rows ``(n,)`` in nats, in the user's units (P3, Eq. 5).

        It is a density on ``bounds`` alone: rows outside of them have −inf.

        Parameters
        ----------
        X : (n, 2)
        normalise : {"grid"}
            Ω is the integral of exp(−E/T) over ``bounds`` by the midpoint rule, in the units that the network sees.
        bounds : ((low, high), (low, high)), optional
            Of the two columns. Default: where training kept its chains.
        points : int
            Of the grid, along each axis.

        Raises
        ------
        ValueError
            For rows with missing cells, a detector of other than two columns of numbers, bounds that are none, and a
            grid that is too coarse for them: with half as many points Ω would be another.

        Warns
        -----
        UserWarning
            The chains of training sampled another temperature than the model's, so that its density is not what they
            were drawn from: without Metropolis's correction, the step size λ and noise σ have σ² ≠ 2λ, or noise was
            annealed. ``preset="2d"`` has them agree.
        """
        rows = self._fitted_rows(X)
        parameters.choice("normalise", normalise, ("grid",))
        parameters.integer("points", points, minimum=2)
        numbers = self.spec_.details is None or all(column.kind == "number" for column in self.spec_.details)
        if self.spec_.shape != (2,) or self._network_spec.shape != (2,) or not numbers:
            raise ValueError(
                f"log_prob integrates over two columns of numbers; the detector was trained on {self.spec_.describe()}."
            )
        values = rows.take(slice(None))
        if np.isnan(values).any():
            raise ValueError("log_prob takes complete rows; a cell of these is missing.")
        _, step_size, noise = self.settings_["visible_chain"]
        # Metropolis's correction makes chains sample the model's temperature whatever their steps are.
        exact = self.settings_["adjusted"] or math.isclose(noise**2, 2 * step_size, rel_tol=0.05)
        if self.settings_["anneal"] or not exact:
            annealed = ", and less as their noise is annealed" if self.settings_["anneal"] else ""
            warnings.warn(
                f"The chains that this model was trained with sample {noise**2 / (2 * step_size):.3g} times its "
                f"temperature{annealed}: its density is not that of the data. NAE(preset='2d') learns it.",
                UserWarning,
                stacklevel=2,
            )
        preparation = self._standardiser or Standardiser.identity(2)
        if bounds is None:
            corners = np.repeat(np.array(self.settings_["bounds"])[:, None], 2, axis=1)
        else:
            corners = preparation.transform(_pairs(bounds).T).astype(np.float64)
        # In the network's units, where a bent column is even: what they are worth in the user's is the slope.
        first, second = map(tuple, corners.T.tolist())

        def log_omega_by(points: int) -> float:
            grid, area = midpoints((first, second), points)
            return log_integral(self.score_samples(preparation.inverse(grid)) / self.temperature_, area)

        log_omega = log_omega_by(points)
        if abs(log_omega - (rougher := log_omega_by(max(1, points // 2)))) > COARSE:
            raise ValueError(
                f"A grid of {points} × {points} points is too coarse for these bounds: log Ω is {log_omega:.4g}, and "
                f"with half as many on a side {rougher:.4g}. Use narrower bounds, or more points."
            )
        log_p: Float64Array = self._scores(rows) / self.temperature_ - log_omega
        rounding = 1e-6 * (corners[1] - corners[0])  # prepared rows are float32
        prepared = preparation.transform(values)
        inside = ((prepared >= corners[0] - rounding) & (prepared <= corners[1] + rounding)).all(1)
        return np.where(inside, log_p + preparation.log_slope(values), -np.inf)


def _pairs(bounds: Any) -> Float64Array:
    """Check ((low, high), (low, high))."""
    try:
        pairs = np.array(bounds, dtype=np.float64)
    except (TypeError, ValueError):
        pairs = np.empty(0)
    if pairs.shape != (2, 2) or not np.isfinite(pairs).all() or not (pairs[:, 0] < pairs[:, 1]).all():
        raise ValueError(f"bounds must be ((low, high), (low, high)), finite and with low < high; got {bounds!r}.")
    return pairs
