"""What the columns of a frame are: numbers, categories, booleans or dates, and how their cells become numbers."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import functools
import math
import numbers
import zoneinfo
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, get_args

import narwhals as nw
import numpy as np
import numpy.typing as npt

from offmanifold.parameters import choice, did_you_mean

if TYPE_CHECKING:
    import polars as pl

Float64Array = npt.NDArray[np.float64]
Kind = Literal["number", "category", "boolean", "date"]
KINDS: tuple[str, ...] = get_args(Kind)
# What a user may say of a column beside its kind: that it is left out, of later data too.
IGNORED = "ignored"

# Of so few levels that are no numbers it is likely that they are mistakes.
FEW_WORDS = 0.05
# Of more levels the rarer ones count as one.
MOST_LEVELS = 100
OTHER, NEW = "other levels", "a level not seen in training"
# Text that stands for a missing number.
BLANKS = ("", "na", "n/a", "nan", "null", "none", "?", "-", ".")
# The first and the last second that a date can be written of: years 1 to 9999.
WRITTEN = (-62_135_596_800, 253_402_300_799)
# Whole numbers that NumPy has no type for.
WIDE = (nw.Int128, nw.UInt128)
TRUTHS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the user's.

    Its cells are told as numbers, NaN where one is missing: a category by the place of its level, a boolean as 0 or 1,
    a date as seconds since 1970 on the column's own clock.

    Attributes
    ----------
    name : str
    kind : {"number", "category", "boolean", "date"}
    levels : tuple of str
        A category's, as text; one that training did not see is told by the place after the last.
    lumped : bool
        Whether the last level stands for all that are rare or new.
    zone : str or None
        A date's time zone.
    text : bool
        Whether numbers, booleans or dates came as text, as they may in a file.
    """

    name: str
    kind: Kind = "number"
    levels: tuple[str, ...] = ()
    lumped: bool = False
    zone: str | None = None
    text: bool = False

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Column:
        """Rebuild what ``dataclasses.asdict`` gave."""
        choice("kind", values["kind"], KINDS)
        zone = values["zone"]
        return cls(
            str(values["name"]),
            values["kind"],
            tuple(str(level) for level in values["levels"]),
            bool(values["lumped"]),
            None if zone is None else str(zone),
            bool(values["text"]),
        )

    def describe(self) -> str:
        """Say in words what it is."""
        if self.kind == "category":
            shown = ", ".join(self.levels[:6]) + (", …" if len(self.levels) > 6 else "")
            return f"category of {len(self.levels)} level{'s' if len(self.levels) != 1 else ''}: {shown}"
        return self.kind + (f" ({self.zone})" if self.zone else "")

    # --- the user's cells → numbers --------------------------------------------------------------------

    def read(self, values: nw.Series[Any]) -> Float64Array:
        """Return cells as numbers; raise ``ValueError`` for some that cannot be of this kind."""
        dtype = values.dtype
        if self.kind == "category":
            return self._codes(values)
        if self.kind == "date":
            return self._seconds(values)
        if dtype.is_numeric() or dtype == nw.Boolean:
            if values.null_count() or dtype in WIDE:
                values = values.cast(nw.Float64())
            found = values.to_numpy().astype(np.float64)
        elif dtype.is_temporal():
            raise ValueError(f"Column {self.name!r} was a {self.kind} in training; got {dtype}.")
        else:
            found = np.array([self._number(value) for value in values.to_list()], dtype=np.float64)
        if self.kind == "boolean" and not np.isin(found[~np.isnan(found)], (0, 1)).all():
            raise ValueError(f"Column {self.name!r} is boolean, and holds numbers other than 0 and 1.")
        return found

    def _number(self, value: Any) -> float:
        if is_missing(value):
            return math.nan
        text = _text(value)
        if text.strip().casefold() in BLANKS:
            return math.nan
        try:
            return TRUTHS[text.strip().casefold()] if self.kind == "boolean" else float(text)
        except (ValueError, KeyError):
            raise ValueError(
                f"Column {self.name!r} is a {self.kind}, and holds {value!r}. Leave it out, mend the cell, or say what "
                f"the column is at the fit: columns={{{self.name!r}: 'category'}}."
            ) from None

    def _codes(self, values: nw.Series[Any]) -> Float64Array:
        known = {level: float(i) for i, level in enumerate(self.levels)}
        for level, place in list(known.items()):  # as written where the column has gaps, or by another program
            known.setdefault(_whole(level), place)
            if level.casefold() in ("true", "false"):
                known.setdefault(level.casefold(), place)
        new = float(len(self.levels) - self.lumped)
        places = (
            math.nan if text is None else known.get(text, known.get(_whole(text), new)) for text in levels_of(values)
        )
        return np.fromiter(places, dtype=np.float64, count=len(values))

    def _seconds(self, values: nw.Series[Any]) -> Float64Array:
        dtype = values.dtype
        if dtype == nw.Object or values.null_count() == len(values):
            return np.array([self._since_1970(value) for value in values.to_list()], dtype=np.float64)
        if dtype == nw.String:
            values = _dates_of_text(values)
        elif dtype == nw.Date:
            values = values.cast(nw.Datetime("us"))
        elif not isinstance(dtype, nw.Datetime):
            raise ValueError(f"Column {self.name!r} was a date in training; got {dtype}.")
        self._check_zone(getattr(values.dtype, "time_zone", None))
        if self.zone is not None:
            values = values.dt.convert_time_zone(self.zone).dt.replace_time_zone(None)
        found = values.dt.timestamp("us")
        if found.null_count():
            found = found.cast(nw.Float64())
        return found.to_numpy().astype(np.float64) / 1e6

    def _since_1970(self, value: Any) -> float:
        if is_missing(value):
            return math.nan
        if not isinstance(value, datetime.date):
            raise ValueError(f"Column {self.name!r} was a date in training; got {value!r}.")
        day = value if isinstance(value, datetime.datetime) else datetime.datetime.combine(value, datetime.time())
        self._check_zone(_zone_of(day))
        if self.zone is not None:
            day = day.astimezone(zoneinfo.ZoneInfo(self.zone))
        return (day.replace(tzinfo=None) - datetime.datetime(1970, 1, 1)).total_seconds()

    def _check_zone(self, zone: str | None) -> None:
        if (zone is None) != (self.zone is None):
            there, here = self.zone or "none", zone or "none"
            raise ValueError(
                f"Column {self.name!r} has other time zones than in training (there: {there}; here: {here})."
            )

    # --- and back --------------------------------------------------------------------------------------

    def write(self, cells: Float64Array, values: nw.Series[Any] | None = None) -> pl.Series:
        """Return numbers as cells of a polars column; ``values`` are the user's cells, if those are known."""
        import polars as pl

        there = ~np.isnan(cells)
        if self.kind == "number":
            return pl.Series(self.name, cells, nan_to_null=True)
        if self.kind == "boolean":
            found: list[Any] = [bool(cell > 0.5) if known else None for cell, known in zip(cells, there, strict=True)]
            return pl.Series(self.name, found, dtype=pl.Boolean)
        if self.kind == "category":
            names = [*self.levels, NEW]
            places = np.where(there, np.clip(np.round(np.where(there, cells, 0)), 0, len(self.levels)), 0).astype(int)
            found = [names[place] if known else None for place, known in zip(places, there, strict=True)]
            if values is not None:
                own = levels_of(values)
                for i in np.flatnonzero(there & (places >= len(self.levels) - self.lumped)):
                    found[i] = f"{own[i]} ({found[i]})"
            return pl.Series(self.name, found, dtype=pl.String)
        # What lies beyond the years 1 to 9999 cannot be written.
        micro = (np.clip(np.where(there, cells, 0), *WRITTEN) * 1e6).round().astype(np.int64)
        series = pl.Series(self.name, micro).cast(pl.Datetime("us"))
        return series.set(pl.Series(~there), None) if not there.all() else series


def _text(value: Any) -> str:
    """Return a level's text: one for 1, 1.0 and numpy's 1."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, numbers.Real) and float(value).is_integer() and abs(float(value)) < 2**53:
        return str(int(float(value)))
    return str(value)


def _whole(text: str) -> str:
    """Return 1 for 1.0, as whole numbers are written beside missing ones; other text as it is."""
    whole = text.removesuffix(".0")
    return whole if whole.removeprefix("-").isdecimal() else text


def is_missing(value: Any) -> bool:
    """Say whether a cell holds nothing: None, NaN, pandas' NaT and NA."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except TypeError:  # whether NA equals itself is NA
        return True


def levels_of(values: nw.Series[Any]) -> list[str | None]:
    """Return each cell's text, None where it is missing."""
    return [None if is_missing(value) else _text(value) for value in values.to_list()]


def _zone_in(values: nw.Series[Any]) -> str | None:
    """Return the time zone of a column of dates, also of text and of Python's; None where they have none."""
    if values.dtype == nw.Object:
        return next((zone for zone in map(_zone_of, values.to_list()) if zone is not None), None)
    if values.dtype == nw.String:
        values = _dates_of_text(values)
    zone: str | None = getattr(values.dtype, "time_zone", None)
    return zone


def _dates_of_text(values: nw.Series[Any]) -> nw.Series[Any]:
    """Read text as polars does, year or day first, from whatever frame it comes: pandas guesses from other cells."""
    import polars as pl

    texts = [None if is_missing(value) else str(value).strip() or None for value in values.to_list()]
    try:
        found = pl.Series(values.name, texts, dtype=pl.String).str.to_datetime()
    except pl.exceptions.PolarsError as error:
        example = next(text for text in texts if text is not None)
        raise ValueError(
            f"Column {values.name!r} holds text that is no date, or dates written in several ways or month first (the "
            f"first is {example!r}). Write all of them as 2024-12-31."
        ) from error
    return nw.from_native(found, series_only=True)


def _zone_of(value: Any) -> str | None:
    """Return the time zone of a date that Python holds, UTC for one that has no name; None for one without."""
    zone = value.tzinfo if isinstance(value, datetime.datetime) else None
    return None if zone is None else _zone_called(str(zone))


@functools.cache  # a name that is not known is searched for on the disk
def _zone_called(name: str) -> str:
    try:
        return zoneinfo.ZoneInfo(name).key
    except (ValueError, zoneinfo.ZoneInfoNotFoundError):  # such as UTC+02:00
        return "UTC"


# --- what columns are ----------------------------------------------------------------------------------


def guess(frame: nw.DataFrame[Any], asked: Mapping[str, str] | None = None) -> tuple[Column, ...]:
    """Say what the columns of a frame are, by their types or as asked; levels are yet to be learned.

    Columns to be ignored are not among them, and need not be there.

    Raises
    ------
    ValueError
        Naming columns that cannot be used, or a name or kind that is unknown.
    """
    schema = frame.schema
    for name, wanted in (asked or {}).items():
        choice(f"columns[{name!r}]", wanted, (*KINDS, IGNORED))
        if name not in schema and wanted != IGNORED:
            raise ValueError(f"columns names {name!r}, which the data do not have.{did_you_mean(name, list(schema))}")
    columns: list[Column] = []
    odd: list[str] = []
    for name, dtype in schema.items():
        kind: Any = (asked or {}).get(name) or _kind(frame, name, dtype)
        if kind == IGNORED:
            continue
        if kind is None:
            odd.append(f"{name!r} ({dtype})")
            continue
        zone = _zone_in(frame[name]) if kind == "date" else None
        columns.append(Column(name, kind, zone=zone, text=kind != "category" and dtype == nw.String))
    if odd:
        more = f" and {len(odd) - 8} more" if len(odd) > 8 else ""
        raise ValueError(
            f"Only columns of numbers, booleans, text, categories and dates can be used; got {', '.join(odd[:8])}"
            f"{more}. Drop them or turn them into one of these first (on the command line: --drop NAME)."
        )
    return tuple(columns)


def _kind(frame: nw.DataFrame[Any], name: str, dtype: Any) -> str | None:
    if dtype.is_numeric():
        return "number"
    if dtype == nw.Boolean:
        return "boolean"
    if dtype == nw.Date or isinstance(dtype, nw.Datetime):
        return "date"
    if dtype == nw.Categorical or isinstance(dtype, nw.Enum):
        return "category"
    if dtype not in (nw.String, nw.Object, nw.Unknown):
        return None
    values = frame[name]
    if values.null_count() == len(values):
        return "number"
    if dtype == nw.String:
        return "category"
    # Python objects of any type.
    there = [value for value in values.to_list() if not is_missing(value)]
    if all(isinstance(value, bool | np.bool_) for value in there):
        return "boolean"
    if all(isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_) for value in there):
        return "number"
    if all(isinstance(value, datetime.date) for value in there):
        return "date"
    return "category" if all(isinstance(value, str | numbers.Real | datetime.date) for value in there) else None


class Levels(NamedTuple):
    """What a category's levels are, before the rarer ones count as one.

    Attributes
    ----------
    total : int
    blank : str or None
        One that may stand for a missing number, where all others are numbers.
    comma : str or None
        A number with a decimal comma, where all others are numbers, with one or without.
    odd : str or None
        One that is no number, where nearly all others are, or has spaces around it, where all are numbers.
    numeric : bool
        Whether all are numbers.
    """

    total: int = 0
    blank: str | None = None
    comma: str | None = None
    odd: str | None = None
    numeric: bool = False

    @classmethod
    def of(cls, texts: Collection[str]) -> Self:
        """Look at them."""
        blanks = [text for text in texts if text.strip().casefold() in BLANKS]
        others = [text for text in texts if text not in blanks]
        if len(others) < 2:
            return cls(len(texts))
        words = [text for text in others if not is_number(text.replace(",", ".", 1))]
        if words:
            return cls(len(texts), odd=min(words) if len(words) <= FEW_WORDS * len(others) else None)
        if spaced := [text for text in others if text != text.strip()]:
            return cls(len(texts), odd=min(spaced))
        comma = next((text for text in others if "," in text), None)
        return cls(len(texts), blanks[0] if blanks and comma is None else None, comma, numeric=True)


def with_levels(column: Column, values: nw.Series[Any]) -> tuple[Column, Levels]:
    """Return a category with the levels that rows of training have, of too many the frequent ones; and what all are."""
    if column.kind != "category":
        return column, Levels()
    counts = collections.Counter(text for text in levels_of(values) if text is not None)
    found = Levels.of(counts)
    if len(counts) <= MOST_LEVELS:
        return dataclasses.replace(column, levels=tuple(sorted(counts))), found
    order = sorted(counts, key=lambda text: (-counts[text], text))
    kept = sorted(text for text in order[: MOST_LEVELS - 1] if counts[text] > 1)
    return dataclasses.replace(column, levels=(*kept, OTHER), lumped=True), found


def is_number(level: str) -> bool:
    """Say whether a level can be read as a finite number."""
    try:
        return math.isfinite(float(level))
    except ValueError:
        return False
