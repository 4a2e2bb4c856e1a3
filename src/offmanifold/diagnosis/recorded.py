"""Checks of what a model's file records, which need no rows."""

from __future__ import annotations

import numpy as np

from offmanifold.diagnosis.answers import grew_without_reason, overfitted
from offmanifold.diagnosis.findings import Finding, Grade, graded
from offmanifold.diagnosis.patient import Patient
from offmanifold.measures.estimates import Estimate

# A gap between training and held-out rows of so many standard deviations is a failure.
LARGE_GAP = 1.5
# Columns that have so small a part of the variance they would have if all were equal hardly count.
FAINT = 0.01


def training(patient: Patient) -> Finding:
    """Did training go well, and does the model know its training rows better than others?"""
    detector = patient.detector
    summary = detector.training_summary()
    report = detector.fit_report_.get("score")
    problems: list[tuple[Grade, str, str]] = []
    for phase, record in summary.items():
        if record["weights_kept_from_step"] == 0:
            problems.append(("fail", f"phase {phase} never got better than it began", "Lower learning_rate."))
        elif record["rolled_back"]:
            times = record["rolled_back"]
            problems.append(("warn", f"phase {phase} was rolled back {times} times", "Lower learning_rate."))
    if detector.fit_report_.get("gamma", {}).get("at_floor"):
        problems.append(
            ("warn", "the decoder's variance is at its floor", "Look for constant columns or repeated rows.")
        )
    if grew_without_reason(detector):
        problems.append(("warn", "gradients grew more than γ explains", "Lower learning_rate."))
    for told, remedy in detector.training_remarks():
        problems.append(("warn", told[0].lower() + told[1:].rstrip("."), remedy))
    number, details = None, {"phases": summary}
    if report is not None:
        if report["spread"] > 0:
            number = Estimate(*(report["gap"][name] / report["spread"] for name in ("value", "low", "high")))
        if number is not None and overfitted(report):
            grade: Grade = "fail" if number.low > LARGE_GAP else "warn"
            told = f"training rows score {number.value:.2f} standard deviations above held-out ones"
            problems.append((grade, told, "Use a smaller network, fewer steps, or more rows."))
    if not problems:
        return Finding("training", "fine", "Training went as it should.", number, "gap, in deviations", details=details)
    worst: Grade = "fail" if any(grade == "fail" for grade, _, _ in problems) else "warn"
    told = "; ".join(text for _, text, _ in problems)
    advice = " ".join(dict.fromkeys(text for _, _, text in problems))
    return Finding("training", worst, _sentence(told), number, "gap, in deviations", advice, details)


def scaling(patient: Patient) -> Finding:
    """Do all columns count, or do some drown in the units of others?"""
    variances = patient.variances
    if variances is None:
        why = (
            "Pixels have one scale."
            if patient.is_image
            else "The model's file was written by a version that did not keep columns' spreads."
        )
        return Finding("scaling", "not applicable", why)
    if len(variances) < 2:
        return Finding("scaling", "not applicable", "Fewer than two columns vary.")
    names = sorted(variances, key=lambda name: variances[name])
    shares = np.cumsum([variances[name] for name in names]) / sum(variances.values())
    fair = np.arange(1, len(names) + 1) / len(names)
    faint = names[: int((shares < FAINT * fair).sum())]
    if not faint:
        return Finding("scaling", "fine", "All columns that vary count.")
    told = f"{len(faint)} of {len(names)} columns hardly count beside the others: {', '.join(faint[:3])}"
    told += " and more." if len(faint) > 3 else "."
    grade = graded(len(faint) / len(names), warn=0.2, fail=0.5)
    remedy = "Fit with scale='standard'" if patient.detector.scale is None else "Leave out columns that hardly vary"
    advice = "" if grade == "fine" else f"{remedy}, unless columns are meant to weigh so differently."
    return Finding("scaling", grade, told, advice=advice, details={"faint": faint})


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
