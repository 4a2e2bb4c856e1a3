"""How CSV and Parquet files are opened as tables, and what is wrong with them, in our words."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from offmanifold.data.columns import BLANKS, is_number

# Day or month, month or day, year; and of how many rows it is looked at which comes first.
DAY_OR_MONTH, DATES_READ = r"^\s*(\d{1,2})[./-](\d{1,2})[./-]\d{4}", 10_000
# A date of three short numbers: its year, whichever that is, lacks the century.
NO_CENTURY = r"^\s*\d{1,3}[./-]\d{1,3}[./-]\d{1,3}(\D|$)"
# The end of a file that is looked at for a row that is cut off.
LAST_BYTES = 2**16
NOT_UTF_8 = "is not UTF-8 text. Save it as CSV in UTF-8."


@contextlib.contextmanager
def polars_errors(path: Path) -> Iterator[None]:
    """Turn polars' errors about a file's content into one sentence."""
    try:
        yield
    except pl.exceptions.NoDataError as error:
        raise ValueError(f"{path} is empty.") from error
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} {_explained(reason)}") from error


def _explained(reason: str) -> str:
    """Say what polars' own words for a fault of a file mean."""
    if "utf-8" in reason:
        return NOT_UTF_8
    if "more fields than defined" in reason:
        return (
            "has a row with more cells than its first line has names. A comma within a cell, as in 1,5, needs quotes "
            "around the cell; where cells are separated by something else, use commas instead."
        )
    if found := re.search(r"conversion from `str` to `f64` failed in column '(.*)' for .* values: \[(.*)\]", reason):
        return (
            f"has {found[2]} in column {found[1]!r}, which holds numbers. Mend the cells, or leave them empty where "
            "the number is missing."
        )
    if "malformed" in reason or re.search(r'parse `[^`]*"', reason):
        return (
            "has quotes that are not closed, or that stand within a cell: double those, and put the cell into quotes."
        )
    return f"cannot be read as a table: {reason}"


def scan_csv(path: Path, **options: Any) -> pl.LazyFrame:
    """Open one CSV file lazily by ``polars.scan_csv``, which leaves the quotes within a column's name doubled."""
    # A bracket in a file's name is no pattern.
    return pl.scan_csv(path, glob=False, with_column_names=_without_doubled_quotes, **options)


def _without_doubled_quotes(names: list[str]) -> list[str]:
    return [name.replace('""', '"') for name in names]


def scan(path: Path, columns: Sequence[str] | None = None, text: Sequence[str] = ()) -> pl.LazyFrame:
    """Open a table lazily: of a CSV file, ``columns`` are read as numbers and ``text`` is left as it stands."""
    if path.suffix.lower() == ".parquet":
        return pl.scan_parquet(path, glob=False)
    names = scan_csv(path, infer_schema=False).collect_schema().names()
    with path.open("rb") as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    if wide or "\x00" in "".join(names) or "\ufffd" in "".join(names):
        raise ValueError(f"{path} {NOT_UTF_8}")
    if "\r" in "".join(names):
        raise ValueError(f"{path} has lines with odd ends. Save it as CSV in UTF-8, with ordinary line ends.")
    twice = [name for name in names if re.fullmatch(".*_duplicated_[0-9]+", name)]  # polars' own new names
    if twice:
        raise ValueError(f"{path}: two columns are called {twice[0].rsplit('_duplicated_', 1)[0]!r}. Rename one.")
    other = next((mark for mark in (";", "\t", "|") if len(names) == 1 and mark in names[0]), None)
    if other is not None:
        raise ValueError(
            f"{path} has one column, called {names[0]!r}: are its cells separated by {other!r}? Use commas instead."
        )
    there = set(names)
    numbers = [name for name in columns or () if name in there]
    as_text = there.intersection([*numbers, *text])
    frame = scan_csv(
        path,
        schema_overrides=dict.fromkeys(as_text, pl.String()),
        # Types from all rows, not the first hundred: a decimal point may turn up late.
        infer_schema_length=0 if len(as_text) == len(names) else None,
        try_parse_dates=True,
    )
    if not numbers:
        return frame
    return frame.with_columns(without_blanks(pl.col(numbers).str.strip_chars()).cast(pl.Float64))


def without_blanks(cells: pl.Expr) -> pl.Expr:
    """Leave out what stands for a missing cell."""
    return pl.when(~cells.str.strip_chars().str.to_lowercase().is_in(BLANKS)).then(cells)


def check_ends(path: Path, names: Sequence[str]) -> None:
    """Warn of a first line that is no names, and of a last one that is no whole row."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_BYTES))
        _, line, last = file.read().rpartition(b"\n")
    cells = last.count(b",") + 1
    if line and last.strip() and b'"' not in last and cells < len(names):
        warnings.warn(
            f"{path} ends within a row, which has {cells} of {len(names)} cells: was the file cut off? The others "
            "count as missing.",
            UserWarning,
            stacklevel=5,
        )
    if all(map(is_number, names)) and not all(name.isdecimal() for name in names):
        warnings.warn(
            f"{path} has numbers alone in its first line ({', '.join(names[:3])}, …), which are taken for the columns' "
            "names. If they are a row, write a line of names before it.",
            UserWarning,
            stacklevel=5,
        )


def check_dates(path: Path, dates: Sequence[str]) -> None:
    """Refuse years of two digits; warn of dates read day first, where nothing tells that they are not month first."""
    texts = scan_csv(path, infer_schema=False).select(dates).head(DATES_READ).collect()
    for name in dates:
        short = texts[name].filter(texts[name].str.contains(NO_CENTURY))
        if len(short):
            raise ValueError(
                f"{path}: dates such as {short[0]!r} in column {name!r} have a year of two digits, which would be read "
                "as one of the first century. Write them as 2024-12-31, or leave the column out (--drop)."
            )
        first, second = (texts[name].str.extract(DAY_OR_MONTH, group).cast(pl.Int64) for group in (1, 2))
        if first.count() and not (first > 12).any() and (first != second).any():
            example = texts[name].filter(first != second)[0]
            warnings.warn(
                f"{path}: dates such as {example!r} in column {name!r} are read day first. If they are written month "
                "first, write them as 2024-12-31.",
                UserWarning,
                stacklevel=4,
            )
