"""Preparation of tables: what is learned from the training rows and applied to every later one."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from offmanifold.data.columns import Column
from offmanifold.data.inputs import Float32Array, Float64Array
from offmanifold.data.transforms import Transform

# Of so small a standard deviation, beside its largest value, a column counts as constant.
CONSTANT = 1e-12
# Beyond a million standard deviations a value counts as a million: squares stay finite in float32.
FARTHEST = 1e6


@dataclasses.dataclass(frozen=True)
class Standardiser:
    """x ↦ (x − mean) / scale, column by column.

    Attributes
    ----------
    mean, scale : (d,) float64
        From the training rows only. A constant column keeps its own unit (scale 1), or what rounding leaves of it.
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
        constant = scale <= CONSTANT * size
        return cls(mean, np.where(constant, _unit(size), scale))

    @classmethod
    def _fit_seen(cls, rows: Float64Array) -> Standardiser:
        seen = ~np.isnan(rows)
        count = np.maximum(seen.sum(axis=0), 1)
        known = np.where(seen, rows, 0.0)
        size = np.maximum(np.abs(known).max(axis=0), np.finfo(float).tiny)
        mean = (known / size).sum(axis=0) / count
        scale = np.sqrt((np.where(seen, known / size - mean, 0.0) ** 2).sum(axis=0) / count) * size
        return cls(mean * size, np.where(scale <= CONSTANT * size, _unit(size), scale))

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

    def log_slope(self, rows: Float64Array) -> Float64Array:
        """Return log |det| of the derivative at rows ``(n, d)``: ``(n,)``."""
        return np.full(len(rows), -float(np.log(self.scale).sum()))


def _unit(size: Float64Array) -> Float64Array:
    """Return the scale of constant columns: 1, or, of values so large that theirs may differ by more, what they may."""
    return np.maximum(1.0, CONSTANT * size)


# Seconds of a date's cycles, and how many of each the rows of training must span for it to be told.
CYCLES = {"day": 86_400.0, "week": 7 * 86_400.0, "year": 365.2425 * 86_400.0}
FEWEST_CYCLES = 2


def surprise(rows: int) -> float:
    """Return −log p of what was never seen in so many rows, in nats (Laplace's rule)."""
    return math.log(rows + 2)


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Columns of several kinds ↦ the cells that a network takes.

    A number, transformed where its tails are heavy, or a boolean is one standardised cell. A category is one cell a
    level, of total variance one: it weighs as much as a number. A level that training did not see has a cell of its
    own, as far out as its surprise, log(n + 2) nats, is for a Gaussian. A date is a standardised trend, and sine and
    cosine of each cycle that the rows of training span, of variance one each pair. Where a cell is missing, all that it
    becomes is NaN.

    Attributes
    ----------
    columns : tuple of Column
    cycles : tuple of tuple of str
        Of each column: the names in :data:`CYCLES` that its dates are told by.
    transforms : tuple of Transform
        Of each column.
    standardiser : Standardiser
        Of the cells.
    """

    columns: tuple[Column, ...]
    cycles: tuple[tuple[str, ...], ...]
    transforms: tuple[Transform, ...]
    standardiser: Standardiser

    @classmethod
    def fit(cls, rows: Float64Array, columns: Sequence[Column], scale: str | None = "standard") -> Preparation:
        """Learn from rows ``(n, d)`` as :class:`~offmanifold.data.inputs.Rows` gives them.

        With "robust" numbers are transformed, each in the way that makes held-out ones likeliest; with None all but
        dates stay as they are.
        """
        cycles = tuple(_cycles(rows[:, i]) if column.kind == "date" else () for i, column in enumerate(columns))
        transforms = tuple(
            Transform.choose(rows[:, i]) if scale == "robust" and column.kind == "number" else Transform()
            for i, column in enumerate(columns)
        )
        bare = cls(tuple(columns), cycles, transforms, Standardiser.identity(1))
        cells = bare._expanded(rows)
        fitted = Standardiser.fit(cells)
        mean, scales = fitted.mean.copy(), fitted.scale.copy()
        for i, column in enumerate(columns):
            for group in bare._groups(i):
                seen = cells[~np.isnan(rows[:, i]), group]
                width = float(np.sqrt(seen.var(axis=0).sum())) if len(seen) else 0.0
                scales[group] = width if width > 1e-12 else 1.0
            if scale is None and column.kind != "date":
                mean[bare.owner == i], scales[bare.owner == i] = 0.0, 1.0
            if column.kind == "category" and not column.lumped:
                new = bare._starts[i + 1] - 1
                mean[new], scales[new] = 0.0, 1 / math.sqrt(2 * surprise(int((~np.isnan(rows[:, i])).sum())))
        return dataclasses.replace(bare, standardiser=Standardiser(mean, scales))

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` needs beside the columns and the standardiser."""
        return {
            "cycles": [list(names) for names in self.cycles],
            "transforms": [dataclasses.asdict(transform) for transform in self.transforms],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], columns: Sequence[Column], standardiser: Standardiser) -> Preparation:
        """Rebuild what was saved; raise ``ValueError`` where it does not fit."""
        cycles = tuple(tuple(str(name) for name in names) for names in values["cycles"])
        transforms = tuple(Transform.from_json(transform) for transform in values["transforms"])
        if not len(cycles) == len(transforms) == len(columns) or any(
            name not in CYCLES for names in cycles for name in names
        ):
            raise ValueError("its preparation of columns does not fit its input.")
        return cls(tuple(columns), cycles, transforms, standardiser)

    def describe(self) -> dict[str, str]:
        """Say by name what each column was taken for."""
        told = {}
        for column, cycles, transform in zip(self.columns, self.cycles, self.transforms, strict=True):
            how = [transform.name] if transform.name != "none" else []
            how += [f"trend and {', '.join(f'time of {name}' for name in cycles)}" if cycles else "trend alone"] * (
                column.kind == "date"
            )
            told[column.name] = column.describe() + (f", {how[0]}" if how else "")
        return told

    @functools.cached_property
    def widths(self) -> list[int]:
        """How many cells each column becomes."""
        return [
            len(column.levels) + (not column.lumped) if column.kind == "category" else 1 + 2 * len(cycles)
            for column, cycles in zip(self.columns, self.cycles, strict=True)
        ]

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [0, *itertools.accumulate(self.widths)]

    @functools.cached_property
    def owner(self) -> npt.NDArray[np.int64]:
        """Which column each cell belongs to."""
        return np.repeat(np.arange(len(self.columns)), self.widths)

    @property
    def blocks(self) -> list[tuple[str, int, float | None]]:
        """Of each column: what its cells are ("number" for a date's), how many, and a new level's −log p."""
        found: list[tuple[str, int, float | None]] = []
        for column, width, end in zip(self.columns, self.widths, self._starts[1:], strict=True):
            has_new = column.kind == "category" and not column.lumped
            kind = "number" if column.kind == "date" else column.kind
            found.append((kind, width, 0.5 / float(self.scale[end - 1]) ** 2 if has_new else None))
        return found

    @property
    def mean(self) -> Float64Array:
        """Of the cells in the rows of training."""
        return self.standardiser.mean

    @property
    def scale(self) -> Float64Array:
        """What the cells are divided by."""
        return self.standardiser.scale

    def transform(self, rows: Float64Array) -> Float32Array:
        """Turn rows ``(n, d)`` into cells ``(n, D)``."""
        return self.standardiser.transform(self._expanded(rows))

    def inverse(self, rows: Float64Array) -> Float64Array:
        """Turn cells ``(n, D)`` into rows ``(n, d)``.

        Of a category the level that has most, of a boolean the nearer of 0 and 1, of a date its trend.
        """
        cells = self.standardiser.inverse(rows)
        found = np.empty((len(cells), len(self.columns)))
        for i, column in enumerate(self.columns):
            part = cells[:, self._starts[i] : self._starts[i + 1]]
            if column.kind == "category":
                found[:, i] = np.where(np.isnan(part).any(1), np.nan, np.nan_to_num(part).argmax(1))
            else:
                found[:, i] = self.transforms[i].inverse(part[:, 0])
                if column.kind == "boolean":
                    found[:, i] = found[:, i].round().clip(0, 1)
        return found

    def log_slope(self, rows: Float64Array) -> Float64Array:
        """Return log |det| of the derivative at rows ``(n, d)`` of numbers alone: ``(n,)``."""
        slopes = self.standardiser.log_slope(rows)
        for i, transform in enumerate(self.transforms):
            slopes += transform.log_slope(rows[:, i])
        return slopes

    def _groups(self, i: int) -> list[slice]:
        """Return the cells of a column that have one variance together."""
        start, end = self._starts[i], self._starts[i + 1]
        if self.columns[i].kind == "category":
            return [slice(start, end)]
        return [slice(at, at + 2) for at in range(start + 1, end, 2)]

    def _expanded(self, rows: Float64Array) -> Float64Array:
        parts = []
        for i, (column, width) in enumerate(zip(self.columns, self.widths, strict=True)):
            cells = rows[:, i]
            if column.kind == "category":
                level = np.clip(np.round(np.nan_to_num(cells)), 0, width - 1)
                hot = (level[:, None] == np.arange(width)).astype(np.float64)
                hot[np.isnan(cells)] = np.nan
                parts.append(hot)
            else:
                angles = [2 * np.pi * cells / CYCLES[name] for name in self.cycles[i]]
                parts.append(
                    np.column_stack(
                        [self.transforms[i](cells), *(f(angle) for angle in angles for f in (np.sin, np.cos))]
                    )
                )
        return np.concatenate(parts, axis=1)


def _cycles(seconds: Float64Array) -> tuple[str, ...]:
    """Return the cycles that dates go through more than once, and not always at the same point."""
    there = seconds[~np.isnan(seconds)]
    if not len(there):
        return ()
    span = float(there.max() - there.min())
    return tuple(
        name
        for name, period in CYCLES.items()
        if span >= FEWEST_CYCLES * period and float(np.ptp(np.mod(there, period))) > 1e-6 * period
    )
