"""May this detector be trusted? Checks on normal rows alone, and the verdict they add up to."""

from __future__ import annotations

import numbers
import re
import time
from collections.abc import Callable, Collection
from typing import Any

from sklearn.utils.validation import check_is_fitted

from offmanifold import parameters
from offmanifold.detectors.base import EXAMINED_ROWS, OutlierDetector
from offmanifold.diagnosis.checks import CHECKS
from offmanifold.diagnosis.combination import combine
from offmanifold.diagnosis.findings import OVER_BUDGET, Diagnosis, Finding
from offmanifold.diagnosis.patient import FEWEST, Patient
from offmanifold.training.precision import ordinary

SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}
# The budget unless one is given: a quarter of the training time, within these.
SHORTEST, LONGEST = 10.0, 120.0
# Where the budget is given and above LONGEST, so many times as many normal rows are looked at.
MORE = 4


@ordinary()
def diagnose(
    detector: OutlierDetector,
    X_normal: Any = None,
    *,
    budget: str | float = "auto",
    checks: Collection[str] | None = None,
    random_state: int = 0,
    report: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Examine a fitted detector without a single outlier.

    Parameters
    ----------
    detector : OutlierDetector
        Fitted.
    X_normal : array-like or frame, optional
        Normal rows, best ones that it was not trained on: half of them become the reference of the plain methods
        beside it. Without them the calibration rows stored with the detector are looked at, which cannot tell whether
        its false-alarm rate holds on rows that come now. Where none are stored (``store_rows=False``) only what was
        recorded at the fit is examined. Of these, and of fewer than 60 rows, the verdict is "care" at best.
    budget : str or float
        Seconds, or text such as "90s", "2min", "1h". Checks that no longer fit are "not examined", and where the
        verdict rests on one of them it is "care" at best. "auto" is a quarter of the training time, 10 seconds at least
        and two minutes at most.
    checks : collection of str, optional
        The names of those to make; all unless told.
    random_state : int
        The same one gives the same diagnosis, unless the budget runs out.
    report : callable, optional
        Is told about progress.

    Returns
    -------
    Diagnosis

    Raises
    ------
    ValueError, TypeError
        For rows that the detector does not take, or a budget that cannot be read.
    """
    if not isinstance(detector, OutlierDetector):
        raise TypeError(
            f"diagnose looks into detectors of this library; got {type(detector).__name__}. Of a pipeline give the "
            "last step, and rows as the steps before it transform them."
        )
    check_is_fitted(detector, "module_")
    random_state = parameters.integer("random_state", random_state, minimum=0, maximum=2**32 - 1)
    if isinstance(checks, str):
        raise parameters.InvalidParameter(f"checks must be a list of names; got {checks!r}.")
    names = [check.name for check in CHECKS]
    wanted = {parameters.choice("checks", name, names) for name in (names if checks is None else checks)}
    began = time.monotonic()
    seconds = _seconds(budget, detector)
    most = EXAMINED_ROWS[detector.spec_.kind] * (MORE if budget != "auto" and seconds > LONGEST else 1)
    patient = Patient(detector, X_normal, most=most, seed=random_state)
    findings = []
    for check in CHECKS:
        if check.name not in wanted:
            continue
        reason, details = None, {}
        needs_rows = check.needs_rows and (patient.is_image or not check.of_images)
        if check.needs_new_rows and patient.stored:
            reason = "It needs normal rows that the model was neither trained nor calibrated with: give some."
        elif needs_rows and patient.count < FEWEST:
            reason = f"It needs at least {FEWEST} normal rows; got {patient.count}."
        elif needs_rows and (spent := time.monotonic() - began) + check.takes(detector) > seconds:
            details = OVER_BUDGET
            reason = (
                f"The budget of {seconds:g} seconds was used up."
                if spent > seconds
                else f"It takes about {check.takes(detector):.0f} seconds, and {seconds - spent:.0f} are left of the "
                f"budget: give more, such as budget='{spent + check.takes(detector) + 5:.0f}s'."
            )
        if reason is None:
            if report is not None:
                report(check.question)
            findings.append(check.run(patient))
        else:
            findings.append(Finding(check.name, "not examined", reason, details=dict(details)))
    verdict, probability, weighing = combine(findings, patient.count)
    took = time.monotonic() - began
    looked_at = patient.count, patient.given, patient.stored
    return Diagnosis(verdict, probability, tuple(findings), weighing, took, *looked_at)


def _seconds(budget: str | float, detector: OutlierDetector) -> float:
    if budget == "auto":
        return min(max(detector.training_seconds / 4, SHORTEST), LONGEST)
    if isinstance(budget, str):
        found = re.fullmatch(r"\s*([0-9.]+)\s*(s|min|h|)\s*", budget)
        try:
            value = float(found[1]) * SECONDS[found[2]] if found else 0.0
        except ValueError:
            value = 0.0
    else:
        value = float(budget) if isinstance(budget, numbers.Real) and not isinstance(budget, bool) else 0.0
    if not value > 0:
        raise parameters.InvalidParameter(
            f"budget must be 'auto', seconds above 0, or text such as '90s', '2min', '1h'; got {budget!r}."
        )
    return value
