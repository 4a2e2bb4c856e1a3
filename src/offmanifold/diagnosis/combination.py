"""How findings add up to a verdict: a logistic regression fitted on a zoo of detectors (``studies/doctor_zoo.py``).

"Failure" is an AUROC on real outliers more than 0.1 below that of nearest neighbours on the same rows. Whether the
outliers themselves are hard to tell cannot be seen in normal rows; whether a detector wastes what they show, can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from offmanifold.diagnosis.findings import FEWEST_TO_TRUST, Finding, Grade, Verdict, left_out

Findings = Mapping[str, Finding]


class Term(NamedTuple):
    """One feature of the combination: how it is read from what checks found, and its standardised weight.

    ``check`` is the one that it comes from: where that was not examined, or says nothing, there is no feature.
    """

    check: str
    read: Callable[[Findings], float]
    mean: float
    scale: float
    weight: float


def _agreement(found: Findings) -> float:
    number = found["agreement"].number
    return number.value if number else math.nan


def _against_neighbours(found: Findings) -> float:
    families = found["red team"].details["families"].values()
    differences = [row["detector"]["value"] - row["kNN"]["value"] for row in families]
    return float(sum(differences) / len(differences))


def _quiet_drift(found: Findings) -> float:
    """Whether rows have moved beyond chance, and raise no more alarms than were asked for.

    So it is where outliers were among the rows of training and calibration. Where alarms are too many, the check of
    calibration decides by itself.
    """
    alarmed = "calibration" in found and found["calibration"].verdict == "fail"
    return float(found["drift"].verdict == "warn" and not alarmed)


# Means, scales and weights are those that `offmanifold study show doctor` ends with, and docs/studies/doctor.md.
TERMS: Mapping[str, Term] = MappingProxyType({
    "red team against neighbours": Term("red team", _against_neighbours, -0.0498, 0.1997, -1.0510),
    "agreement": Term("agreement", _agreement, 0.5521, 0.3818, -0.6721),
    "quiet drift": Term("drift", _quiet_drift, 0.0404, 0.1970, 0.5993),
})  # fmt: skip
BIAS = -0.9793
# Above the first: distrust; above the second: care. In the zoo none of 242 honest detectors that are good is above the
# first, and one in ten above the second.
DISTRUST, CARE = 0.3, 0.2
# Checks whose failure decides by itself: the zoo's detectors were all calibrated on rows of the same kind.
DECISIVE = ("training", "latents", "calibration", "drift")
# Checks whose warning rules out trust. That all latents are used is told, but so it is with most VAEs of tables, and
# they are no worse for it: as a reason for care it cost 21 of 120 good honest detectors their trust, and 2 broken ones.
CAUTIONARY = ("training", "calibration", "drift")


def features(findings: Sequence[Finding]) -> dict[str, float]:
    """Return what the combination reads from the findings, as far as it was examined."""
    by_check = {finding.check: finding for finding in findings}
    found = {}
    for name, term in TERMS.items():
        finding = by_check.get(term.check)
        if finding is not None and finding.verdict not in ("not applicable", "not examined"):
            found[name] = term.read(by_check)
    return {name: value for name, value in found.items() if not math.isnan(value)}


def verdict_of(grades: Mapping[str, Grade], probability: float) -> Verdict:
    """Return the verdict that grades by check, and the probability of failure, add up to."""
    if probability > DISTRUST or any(grades.get(name) == "fail" for name in DECISIVE):
        return "distrust"
    wanting = any(grades.get(name) == "warn" for name in CAUTIONARY)
    return "care" if wanting or probability > CARE or "fail" in grades.values() else "trust"


def combine(findings: Sequence[Finding], rows: int = FEWEST_TO_TRUST) -> tuple[Verdict, float | None, tuple[str, ...]]:
    """Return verdict, probability of failure (None where too little was examined), and what weighs most.

    Where the budget left out a check that the verdict rests on, or few ``rows`` were looked at, it is "care" at best.
    """
    grades = {finding.check: finding.verdict for finding in findings}
    decisive = [name for name in DECISIVE if grades.get(name) == "fail"]
    wanting = [name for name in CAUTIONARY if grades.get(name) == "warn"]
    found = features(findings)
    if "red team against neighbours" not in found:
        return "distrust" if decisive else "care", None, tuple(decisive or wanting)[:2]
    # What was not examined stays at the zoo's mean.
    pushes = {
        name: term.weight * (found[name] - term.mean) / term.scale for name, term in TERMS.items() if name in found
    }
    probability = 1 / (1 + math.exp(-(BIAS + sum(pushes.values()))))
    failed = [name for name, grade in grades.items() if grade == "fail"]
    verdict = verdict_of(grades, probability)
    few = rows < FEWEST_TO_TRUST
    if verdict == "trust" and (few or left_out(findings)):
        verdict = "care"
    named = {"distrust": decisive, "care": [*failed, *wanting], "trust": []}[verdict]
    # Only what pushed towards the verdict is told, checks that failed before those that did not.
    towards = {name: -push if verdict == "trust" else push for name, push in pushes.items()}
    order = sorted(towards, key=lambda name: (grades[TERMS[name].check] != "fail", -towards[name]))
    named += [TERMS[name].check for name in order if towards[name] > 0]
    return verdict, None if few else probability, tuple(dict.fromkeys(named))[:2]
