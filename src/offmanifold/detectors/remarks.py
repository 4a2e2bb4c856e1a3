"""What a user should know of a fit, in warnings: units, copies of rows, too few of them, going back, equal scores."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from offmanifold import calibration
from offmanifold.data.inputs import Float64Array
from offmanifold.data.tables import Standardiser
from offmanifold.detectors.negatives import overlap
from offmanifold.probability.missing import missing_cells

# Standard deviations of columns that defaults are meant for.
UNITS = (0.1, 10.0)
# So many standard deviations from a column's mean zero is no value to stand in for it.
FAR_FROM_ZERO = 3.0
# Share of the calibration rows that may be copies of rows that were learned from.
MOST_COPIES = 0.1


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)  # where ``fit`` was called


def of_units(training: Tensor) -> None:
    """Say so where a table's columns are left in units that no default is meant for, or gaps in them far from zero."""
    found, missing = Standardiser.fit(training.double().numpy()), missing_cells(training)
    if missing is not None:
        away = float((np.abs(found.mean) / found.scale)[missing.any(0).numpy()].max())
        if away > FAR_FROM_ZERO:
            _warn(
                "With scale=None a missing cell is shown to the network as 0, which lies up to "
                f"{away:.3g} standard deviations from the mean of columns that have gaps. Use scale='standard', or "
                "leave such columns out."
            )
    spread = float(np.median(found.scale))
    if not UNITS[0] <= spread <= UNITS[1]:
        _warn(
            f"scale=None leaves columns whose standard deviation is {spread:.3g} (the median), and the defaults (of "
            "noise, steps, rates) are for about 1. Use scale='standard', or divide the columns by a number."
        )


def of_copies(training: Tensor, calibrating: Tensor, rate: float) -> None:
    """Say so where calibration rows are known to the model: their scores are no new rows'."""
    copies = overlap(calibrating, [training])
    if copies <= MOST_COPIES * len(calibrating):
        return
    distinct = np.unique(training.flatten(1).numpy(), axis=0)
    # Where values are few rows are alike by chance, new ones as often as these.
    if len(distinct) > 1 and max(len(np.unique(column)) for column in distinct.T) > len(distinct) / 2:
        _warn(
            f"{copies / len(calibrating):.0%} of the calibration rows are copies of rows that were learned from. The "
            "model knows them, so that it may call more of the rows that are new outliers than "
            f"false_alarm_rate={rate:g}. Leave copies out."
        )


def of_too_few(calibrated: int, rate: float) -> None:
    """Say so where so many calibration rows cannot promise the rate."""
    smallest = calibration.smallest_rate(calibrated)
    if smallest > rate:
        _warn(
            f"{calibrated} calibration row{'s' if calibrated > 1 else ''} cannot promise false_alarm_rate={rate:g}: "
            f"the smallest rate they can promise is {smallest:.3g}, so predict will call nothing an outlier. Give more "
            "rows, or raise false_alarm_rate or calibration_fraction."
        )


def of_going_back(summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Say so where training diverged and recovered; ``summary`` is a detector's ``training_summary()``."""
    for phase, told in summary.items():
        if problems := told.get("problems"):
            _warn(
                f"Training diverged in phase {phase!r} and went on from earlier weights at half the rate: "
                f"{'; '.join(problems)}. A smaller learning_rate may spare that."
            )


def of_scores_alike(scores: Float64Array, rows: npt.NDArray[Any]) -> None:
    """Say so where sorted scores of rows that differ are all the same."""
    differ = not np.array_equal(rows, np.broadcast_to(rows[:1], rows.shape), equal_nan=True)
    if scores[0] == scores[-1] and differ:
        _warn(
            f"All {len(rows)} calibration rows have the same score, though they differ: this model tells nothing "
            "apart. Train it longer, with another random_state, or with another network."
        )
