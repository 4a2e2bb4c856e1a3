"""Whether rows come from where others came from, told from a summary of the others alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from scipy.stats import gamma, norm, pearson3
from torch import Tensor

from offmanifold.measures.estimates import Estimate

Float64Array = npt.NDArray[np.float64]
# An image is told by the brightness of so many patches each way.
PATCHES = 4
# Rows summed up at a time.
BLOCK = 1024
# Differences of so much of a part's size are rounding.
ROUNDING = 1e-6
# Less skewness is none, and smaller probabilities are this one.
SYMMETRIC, SMALLEST = 1e-4, 1e-300


def compared_parts(prepared: Tensor) -> npt.NDArray[np.float32]:
    """Return what is compared of rows: a table's cells ``(n, d)``; of images the patches' means ``(n, C · 4 · 4)``."""
    if prepared.ndim > 2:
        prepared = F.adaptive_avg_pool2d(prepared, PATCHES).flatten(1)
    return prepared.cpu().numpy()


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean, standard deviation and skewness of each part of rows, and of how many rows: ``(k,)`` float64 each.

    A model file keeps those of its training rows: enough to tell whether others are like them, too little to tell
    what they were. Files of before the skewness was kept have none.
    """

    mean: Float64Array
    spread: Float64Array
    count: Float64Array
    skewness: Float64Array | None = None

    @classmethod
    def of(cls, rows: npt.NDArray[Any]) -> Self:
        """Learn them from rows ``(n, k)``, as far as cells are not missing (NaN), a block at a time."""
        blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
        count: Float64Array = np.sum([np.isfinite(block).sum(0) for block in blocks], axis=0, dtype=np.float64)
        some = np.maximum(count, 1)
        mean = np.sum([np.nansum(block, 0, dtype=np.float64) for block in blocks], axis=0) / some
        squares, cubes = np.zeros_like(mean), np.zeros_like(mean)
        for block in blocks:
            centred = np.nan_to_num(block - mean)
            powers = np.square(centred)
            squares += powers.sum(0)
            powers *= centred
            cubes += powers.sum(0)
        spread = np.sqrt(squares / some)
        return cls(mean, spread, count, cubes / some / np.where(spread > 0, spread, 1) ** 3)


@dataclasses.dataclass(frozen=True)
class Shift:
    """How far the means of some rows lie from those of others.

    Attributes
    ----------
    size : Estimate
        Root mean square over the parts, in standard deviations (both sides' pooled), beyond what chance gives.
    p_value : float
        Of means so far apart if both came from the same place.
    moved : (m,) int
        The parts whose means differ beyond chance (1 % over all of them), the farthest first.
    gaps : (k,) float64
        How far each part's mean lies from the others', in the others' standard deviations (pooled ones where the others
        have none); 0 where that is not known.
    """

    size: Estimate
    p_value: float
    moved: npt.NDArray[np.intp]
    gaps: Float64Array


def shift(known: Moments, rows: npt.NDArray[Any]) -> Shift:
    """Compare rows ``(n, k)`` with the moments of others.

    Σ z² over the parts' z is compared with a gamma law of the same mean and variance, which parts that are correlated
    widen (Satterthwaite); their correlation is estimated from ``rows`` (its square's trace without bias, as Bai and
    Saranadasa do). Where the smaller of the two sides has few rows, the mean of a rare category or of a part with a
    long tail is not normal: each z is what it would be for a normal law of the same tail as Pearson's type III law with
    the mean's skewness.

    Chance is what two samples of one law have. Rows that vary more than the others have means farther off, too: with
    the spread doubled among 50 rows p is below .001 in four of ten cases.
    """
    new = Moments.of(rows)
    both = np.maximum(known.count + new.count, 1)
    pooled = np.sqrt((known.count * known.spread**2 + new.count * new.spread**2) / both)
    unit = np.maximum(pooled, ROUNDING * np.maximum(np.abs(known.mean), 1))
    gap = (new.mean - known.mean) / unit
    told = (np.minimum(known.count, new.count) > 0) & ((pooled > 0) | (np.abs(gap) > 1))
    if not told.any():
        return Shift(Estimate(0.0, 0.0, 0.0), 1.0, np.zeros(0, np.intp), np.zeros(len(gap)))
    chance = 1 / known.count[told] + 1 / new.count[told]
    # Spreads are estimated: of N normal rows in all, z² would be N/(N − 4) on average.
    z = gap[told] / np.sqrt(chance) * np.sqrt(np.maximum(both[told] - 4, 1) / both[told])
    # Whatever the law, z² is 1 on average; the tails are for what is called chance.
    total, k = float(z @ z), len(z)
    normal = _as_normal(z, _skewness(known, new, unit)[told])
    spread = np.where(new.spread > 0, new.spread, 1)[told]
    standard: Any = np.nan_to_num((rows[:, told] - new.mean[told]) / spread)
    n = len(standard)
    standard *= np.sqrt(n / new.count[told])  # what is missing adds nothing: the rest stands for it
    gram = standard.T @ standard if k < n else standard @ standard.T
    free = n - 1
    # tr C², of C the parts' correlation; two rows say nothing of it, and then it counts as perfect.
    squared = (
        (float((gram**2).sum()) / n**2 - k**2 / free) * free**2 / ((free - 1) * (free + 2)) if n > 2 else float(k**2)
    )
    squared = max(squared, float(k))
    p_value = float(gamma.sf(normal @ normal, k**2 / (2 * squared), scale=2 * squared / k))
    # Var Σ z² = 2 tr C² + 4 μᵀCμ where the z have means μ.
    drawn = float(np.square(standard @ z).sum()) / n - squared
    root = math.sqrt(total)  # whose error hardly depends on itself
    half = float(norm.ppf(0.975)) * math.sqrt(2 * squared + 4 * max(drawn, 0.0)) / max(2 * root, 1e-12)
    typical = float(chance.mean())
    ends = (root, max(root - half, 0.0), root + half)
    size = Estimate(*(math.sqrt(max(end**2 / k - 1, 0.0) * typical) for end in ends))
    limit = float(norm.isf(0.005 / k))
    places = np.flatnonzero(told)
    order = np.argsort(-np.abs(z))
    own = np.where(known.spread > 0, np.maximum(known.spread, ROUNDING * np.abs(known.mean)), unit)
    gaps = np.where(told, (new.mean - known.mean) / own, 0.0)
    return Shift(size, p_value, places[order[np.abs(normal)[order] > limit]], gaps)


def _skewness(known: Moments, new: Moments, unit: Float64Array) -> Float64Array:
    """Return the skewness ``(k,)`` of the difference between the means of the two sides' rows, if both are alike."""
    sides = [
        (side.count, side.skewness * (side.spread / unit) ** 3) for side in (known, new) if side.skewness is not None
    ]
    cubes = sum(count * own for count, own in sides) / np.maximum(sum(count for count, _ in sides), 1)
    old, added = 1 / np.maximum(known.count, 1), 1 / np.maximum(new.count, 1)
    found: Float64Array = cubes * (added**2 - old**2) / (added + old) ** 1.5
    return found


def _as_normal(z: Float64Array, skewness: Float64Array) -> Float64Array:
    """Return the normal quantiles of z, whose laws are of mean 0, variance 1 and so much skewness."""
    law, up = pearson3(np.where(np.abs(skewness) > SYMMETRIC, skewness, 0)), z > 0
    tail = np.where(up, law.sf(z), law.cdf(z)).clip(SMALLEST, 1)
    # The shorter tail of other laws is not as short as Pearson's.
    found: Float64Array = np.sign(z) * np.minimum(
        np.abs(z), np.maximum(np.where(up, norm.isf(tail), -norm.ppf(tail)), 0)
    )
    return found
