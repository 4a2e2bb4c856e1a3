"""How findings add up to a verdict: a logistic regression fitted on a zoo of detectors (``studies/doctor_zoo.py``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from offmanifold.diagnosis.findings import Finding, Verdict

# What is taken from the findings: name → (check, how it is read).
READ: Mapping[str, tuple[str, Callable[[Finding], float]]] = MappingProxyType({
    "red team": ("red team", lambda f: f.details["means"]["detector"]),
    "red team against neighbours": (
        "red team", lambda f: f.details["means"]["detector"] - f.details["means"]["kNN"],
    ),
    "red team, worst family": (
        "red team", lambda f: min(family["detector"]["value"] for family in f.details["families"].values()),
    ),
    "neighbours' red team": ("red team", lambda f: f.details["means"]["kNN"]),
    "identity": ("identity", lambda f: f.number.value if f.number else math.nan),
    "stability": ("stability", lambda f: f.number.value if f.number else math.nan),
    "attack": ("attack", lambda f: f.number.value if f.number else math.nan),
    "gap": ("training", lambda f: min(max(f.number.value, -3.0), 3.0) if f.number else math.nan),
    "collapse": ("latents", lambda f: float(f.verdict == "fail")),
})  # fmt: skip
FEATURES = tuple(READ)
# Fails no detector on data of its own calibration: the verdict has to heed it whatever the probability is.
DECISIVE = ("calibration",)


def features(findings: Sequence[Finding]) -> dict[str, float]:
    """Return what the combination reads from the findings, as far as it was examined."""
    by_check = {finding.check: finding for finding in findings}
    found = {}
    for name, (check, read) in READ.items():
        finding = by_check.get(check)
        if finding is not None and finding.verdict not in ("not applicable", "not examined"):
            found[name] = float(read(finding))
    return found


def combine(findings: Sequence[Finding]) -> tuple[Verdict, float | None, tuple[str, ...]]:
    """Return verdict, probability of failure (None where too little was examined), and what weighs most."""
    grades = {finding.check: finding.verdict for finding in findings}
    failed = [name for name, grade in grades.items() if grade == "fail"]
    warned = [name for name, grade in grades.items() if grade == "warn"]
    if failed:
        return "distrust", None, tuple(failed[:2])
    if warned or grades.get("red team") == "not examined":
        return "care", None, tuple(warned[:2])
    return "trust", None, ()
