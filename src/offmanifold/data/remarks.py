"""What a user should know about the columns of the rows that a detector learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from offmanifold.data.columns import Column, Levels, is_number

Float64Array = npt.NDArray[np.float64]
# Rows from which on a column may look like an identifier.
FEWEST_TO_IDENTIFY, FEWEST_TO_COUNT = 20, 200
# At most this share of a column's cells is far off, if the nearest of them is so many times as far from the median as
# the farthest of the others, and the standard deviation so many times theirs. Of the 2 205 columns of ADBench's tables
# none has such cells; of columns of 500 lognormal values none with σ = 2, one in thirty with σ = 3.
MOST_FAR, GAP, SPREAD = 0.2, 20.0, 10.0


def remarks(columns: Sequence[Column], rows: Float64Array, levels: Sequence[Levels]) -> list[str]:
    """Return what a user should know about columns, from rows of training ``(n, d)`` and what levels there were."""
    told = []
    for i, column in enumerate(columns):
        cells = rows[:, i]
        there = cells[~np.isnan(cells)]
        name = column.name
        if not len(there):
            told.append(f"Column {name!r} is empty in the rows of training: leave it out (--drop {name}).")
        elif levels[i].comma is not None:
            told.append(
                f"Column {name!r} is text, and all of it numbers, some with a decimal comma, such as "
                f"{levels[i].comma!r}: it is taken for a category. Write them with a point."
            )
        elif levels[i].blank is not None:
            blank = levels[i].blank
            told.append(
                f"Column {name!r} is text for {blank!r}, and all its other values are numbers: it is taken for a "
                f"category. If {blank!r} stands for a missing number, say that it is a number (columns={{{name!r}: "
                "'number'}, on the command line --columns)."
            )
        elif levels[i].odd is not None:
            told.append(f"Column {name!r} is text for {_oddity(levels[i])}. If that is a mistake, mend such cells.")
        elif _counts(column, there, len(rows)) or (
            column.kind == "category" and len(there) >= FEWEST_TO_IDENTIFY and levels[i].total > 0.9 * len(there)
        ):
            told.append(
                f"Column {name!r} looks like an identifier, a value of its own for each row: nothing can be "
                f"learned from it, and every new one is odd. Leave it out (--drop {name})."
                + (" If it holds numbers, a cell of another row is none: mend that." if levels[i].numeric else "")
            )
        elif (there == there[0]).all():
            told.append(
                f"Column {name!r} is constant in the rows of training: nothing is learned from it, and only a large "
                f"change of it, in its own unit, is noticed. Leave it out (--drop {name}) unless that is what you want."
            )
        elif column.kind == "date" and len(there) >= FEWEST_TO_IDENTIFY and (np.diff(there) >= 0).all():
            told.append(
                f"Column {name!r} is a clock: it rises from row to row, so that every later row lies beyond all that "
                f"was learned, and is the more abnormal for it. Leave it out (--drop {name}), unless later rows are "
                "of the same time."
            )
        elif column.kind == "number" and (remark := far_off(name, there)):
            told.append(remark)
        elif column.lumped:
            told.append(
                f"Column {name!r} has {levels[i].total:,} levels in the rows of training: the {len(column.levels) - 1} "
                "most frequent are kept, and all others, new ones too, count as one. Group its levels, or leave it out "
                f"(--drop {name})."
            )
    return told


def _oddity(levels: Levels) -> str:
    odd = levels.odd or ""
    if is_number(odd):
        return f"the spaces around its numbers, as in {odd!r}: it is taken for a category"
    return f"{odd!r}, and all but a few of its {levels.total:,} values are numbers: it is taken for a category"


def far_off(name: Any, cells: Float64Array) -> str | None:
    """Say so where a few of a column's cells lie so far from all others that its standard deviation is theirs alone."""
    there = cells[~np.isnan(cells)]
    if len(there) < FEWEST_TO_IDENTIFY:
        return None
    distances, near = np.abs(there - np.median(there)), int(len(there) * (1 - MOST_FAR))
    if np.partition(distances, near - 1)[near - 1] > distances.max() / GAP:
        return None  # as of most columns, which need not be sorted for it
    order = np.argsort(distances)
    lower, upper = distances[order][near - 1 : -1], distances[order][near:]
    jumps = (lower > 0) & (upper > GAP * lower)
    if not jumps.any():
        return None
    first = near + int(np.argmax(jumps))
    others, far = there[order[:first]].std(), there[order[first:]]
    if there.std() < SPREAD * others:
        return None
    return (
        f"Column {name!r}: {len(far):,} of its {len(there):,} values in the rows of training, such as {far[0]:g}, lie "
        f"so far from all others that its standard deviation is {there.std() / others:,.0f} times theirs: what is odd "
        "among those is hardly seen. If they stand for missing values, make them missing (NaN); if they are errors, "
        "leave the rows out."
    )


def _counts(column: Column, there: Float64Array, rows: int) -> bool:
    """Say whether a column of whole numbers counts the rows: none twice, and close to each other."""
    if column.kind != "number" or rows < FEWEST_TO_IDENTIFY or len(there) < rows or (there != np.round(there)).any():
        return False
    steps = np.diff(there)
    if (steps > 0).all() and there[-1] - there[0] < 2 * rows:  # rows of training are most of all rows, in their order
        return True
    # In any order: so many different numbers among so few hardly come by chance.
    return bool(rows >= FEWEST_TO_COUNT and np.ptp(there) < 20 * rows and (np.diff(np.sort(there)) > 0).all())
