"""Numbers with heavy tails: a transform for each column, chosen by the likelihood of rows held out."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

Float64Array = npt.NDArray[np.float64]
KNOTS = 32
# Every so many-th row is held out to choose by, and the fewest rows to choose from.
HELD_OUT, FEWEST = 5, 50
# A transform must gain so many nats a value, and so many standard errors; one value counts so many nats at most.
GAIN, ERRORS, MOST = 0.01, 2.0, 5.0
# Of values: fewer that differ make quantiles steps.
DISTINCT = 0.5
SINH = 700.0
# Two quantiles so many times as far apart as others near them, on either side, have a gap between modes among them.
GAP, NEAR = 6.0, 3


@dataclasses.dataclass(frozen=True)
class Transform:
    """An increasing function of a column's values, linear, logarithmic or piecewise linear far away.

    Attributes
    ----------
    name : {"none", "signed log", "quantiles"}
        x; asinh((x − centre)/unit), which is linear near the median and logarithmic in both tails; straight lines
        between quantiles, to those of a normal distribution.
    centre, unit : float
        Of the signed logarithm.
    knots, normal : tuple of float
        Quantiles, and what they become.
    """

    names: ClassVar[tuple[str, ...]] = ("none", "signed log", "quantiles")

    name: str = "none"
    centre: float = 0.0
    unit: float = 1.0
    knots: tuple[float, ...] = ()
    normal: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Transform:
        """Rebuild what ``dataclasses.asdict`` gave; raise ``ValueError`` for what is none."""
        found = cls(
            str(values["name"]), float(values["centre"]), float(values["unit"]),
            tuple(map(float, values["knots"])), tuple(map(float, values["normal"])),
        )  # fmt: skip
        rising = all((np.diff(points) > 0).all() for points in (found.knots, found.normal))
        fits = len(found.knots) == len(found.normal) and (len(found.knots) > 1) == (found.name == "quantiles")
        if found.name not in cls.names or not found.unit > 0 or not rising or not fits:
            raise ValueError("its transform of a column is damaged.")
        return found

    def __call__(self, values: Float64Array) -> Float64Array:
        """Return transformed values; NaN stays."""
        if self.name == "signed log":
            with np.errstate(over="ignore"):
                return np.arcsinh(np.clip((values - self.centre) / self.unit, -1e300, 1e300))
        return _lines(values, self.knots, self.normal) if self.name == "quantiles" else values

    def inverse(self, values: Float64Array) -> Float64Array:
        """Return values in the user's unit."""
        if self.name == "signed log":
            found: Float64Array = np.sinh(np.clip(values, -SINH, SINH)) * self.unit + self.centre
            return found
        return _lines(values, self.normal, self.knots) if self.name == "quantiles" else values

    def log_slope(self, values: Float64Array) -> Float64Array:
        """Return the logarithm of the derivative at values."""
        if self.name == "signed log":
            with np.errstate(over="ignore"):
                scaled = np.clip((values - self.centre) / self.unit, -1e300, 1e300)
            found: Float64Array = -np.log(np.hypot(1, scaled)) - np.log(self.unit)  # squares might overflow
            return found
        if self.name == "quantiles":
            slopes = np.diff(self.normal) / np.diff(self.knots)
            slopes_at: Float64Array = np.log(slopes[_segment(values, self.knots)])
            return slopes_at
        return np.zeros_like(values)

    @classmethod
    def choose(cls, values: Float64Array) -> Transform:
        """Return the transform under which values that were held out are likeliest, as a normal distribution's.

        Densities are those of the values themselves: a transform's slope counts. It must be better beyond chance.
        Quantiles are none where modes have a gap between them: all that lies in the gap would become one value.
        """
        there = values[~np.isnan(values)]
        held = np.arange(len(there)) % HELD_OUT == 0
        learned, judged = there[~held], there[held]
        if len(there) < FEWEST or (learned == learned[0]).all():
            return cls()
        plain = cls()
        best, likelihoods = plain, plain._log_density(learned, judged)
        # What is chosen is learned again from all values: what these rule out is no choice.
        again = {one.name: one for one in cls._candidates(there)}
        for candidate in cls._candidates(learned):
            if candidate.name not in again:
                continue
            found = candidate._log_density(learned, judged)
            gain = np.clip(found - likelihoods, -MOST, MOST)
            if gain.mean() > max(GAIN, ERRORS * gain.std() / np.sqrt(len(gain))):
                best, likelihoods = candidate, found
        return again.get(best.name, plain)

    @classmethod
    def _candidates(cls, values: Float64Array) -> list[Transform]:
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        unit = (high - low) / 1.35 or float(values.std())
        found = [cls("signed log", float(middle), float(unit))]
        distinct = np.unique(values)
        if len(distinct) >= max(2 * KNOTS, DISTINCT * len(values)):
            at = (np.arange(KNOTS) + 0.5) / KNOTS
            knots, normal = np.quantile(values, at), norm.ppf(at)
            if (np.diff(knots) > 0).all() and not _has_gap(np.diff(knots)):
                found.append(cls("quantiles", knots=tuple(knots.tolist()), normal=tuple(normal.tolist())))
        return found

    def _log_density(self, learned: Float64Array, judged: Float64Array) -> Float64Array:
        inner = self(learned)
        size = max(float(np.abs(inner).max()), 1e-300)  # squares stay finite near the float64 limit
        spread = max(float((inner / size).std()), 1e-300)
        found: Float64Array = norm.logpdf(self(judged) / size, (inner / size).mean(), spread) - np.log(size)
        return found + self.log_slope(judged)


def _has_gap(widths: Float64Array) -> bool:
    """Return whether equal shares of the values are far wider than some near them on both sides, as no tail's are."""
    return any(
        widths[i] > GAP * max(widths[max(0, i - NEAR) : i].min(), widths[i + 1 : i + 1 + NEAR].min())
        for i in range(1, len(widths) - 1)
    )


def _segment(values: Float64Array, at: tuple[float, ...]) -> npt.NDArray[np.intp]:
    return np.clip(np.searchsorted(at, values) - 1, 0, len(at) - 2)


def _lines(values: Float64Array, at: tuple[float, ...], to: tuple[float, ...]) -> Float64Array:
    """Return the lines through points, the first and last of which go on."""
    points, images = np.array(at), np.array(to)
    here = _segment(values, at)
    slopes = np.diff(images) / np.diff(points)
    found: Float64Array = images[here] + (values - points[here]) * slopes[here]
    return found
