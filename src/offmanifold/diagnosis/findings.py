"""What an examination says: findings, and the verdict that they add up to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from offmanifold.measures.estimates import Estimate

Grade = Literal["fine", "warn", "fail", "not applicable", "not examined"]
Verdict = Literal["trust", "care", "distrust"]
# Checks that no verdict rests on: two never fail, and the zoo's detectors were judged without the search.
BESIDE = ("attack", "manifold", "refits")
# What the details of a finding have where there was no time for the check.
OVER_BUDGET = {"left_out": "budget"}


def graded(value: float, *, warn: float, fail: float) -> Grade:
    """Grade a number: below ``warn`` and ``fail`` where these fall, above them where they rise; NaN fails."""
    if math.isnan(value):
        return "fail"
    sign = 1 if warn >= fail else -1
    return "fail" if sign * value < sign * fail else "warn" if sign * value < sign * warn else "fine"


def to_json(table: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    """Return estimates by family and method as plain values."""
    return {family: {name: found.to_json() for name, found in row.items()} for family, row in table.items()}


def other_than(key: str) -> str:
    """Name what does not reconstruct what it never saw, for who is told that detector ``key`` does."""
    return "neighbours beside it" if key == "nae" else "detector='nae', or neighbours beside it"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    check : str
        Its name.
    verdict : {"fine", "warn", "fail", "not applicable", "not examined"}
    told : str
        What was found, in a sentence.
    number : Estimate or None
        The number behind it; ``meaning`` says of what.
    meaning : str
    advice : str
        What to do about it; empty where all is well.
    details : dict
        More, JSON-able.
    """

    check: str
    verdict: Grade
    told: str
    number: Estimate | None = None
    meaning: str = ""
    advice: str = ""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a dict of plain values."""
        return dataclasses.asdict(self)


# With fewer rows looked at no detector is trusted, nor a probability told: on 20, half of them the reference of nearest
# neighbours, an untrained one was trusted in 3 to 8 of 12 trials, on 30 in 3, on 60 and 100 in none.
FEWEST_TO_TRUST = 60


def left_out(findings: Sequence[Finding]) -> list[str]:
    """Return the checks that a verdict rests on and that the budget had no time for."""
    return [one.check for one in findings if one.details == OVER_BUDGET and one.check not in BESIDE]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Whether a detector may be trusted, and why.

    Attributes
    ----------
    verdict : {"trust", "care", "distrust"}
        "care" at best where the budget left out a check that it rests on, any but attack, manifold and refits, and
        where fewer than 60 normal rows were looked at.
    failure_probability : float or None
        Of an AUROC on real outliers more than 0.1 below that of nearest neighbours, where as many detectors fail as
        in the zoo that it was fitted on (:mod:`offmanifold.diagnosis.combination`); None where too little could be
        examined, or on fewer than 60 rows.
    findings : tuple of Finding
        One a check, in the order of the examination.
    weighing_most : tuple of str
        The checks that moved the probability most.
    seconds : float
    rows, given : int
        How many normal rows were looked at, and how many were given.
    stored : bool
        Whether they were those stored with the detector, for none were given.
    """

    verdict: Verdict
    failure_probability: float | None
    findings: tuple[Finding, ...]
    weighing_most: tuple[str, ...]
    seconds: float
    rows: int
    given: int
    stored: bool

    def __repr__(self) -> str:
        return f"Diagnosis({self.verdict!r}, {len(self.findings)} findings; print it to read them)"

    def __getitem__(self, check: str) -> Finding:
        """Return the finding of a check by its name."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"{check!r}; there are {', '.join(repr(finding.check) for finding in self.findings)}.")

    def to_json(self) -> dict[str, Any]:
        """Return a dict of plain values."""
        return dataclasses.asdict(self)

    @property
    def sentence(self) -> str:
        """The verdict in words, and which checks it would rest on that the budget left out."""
        words = {
            "trust": "This detector may be trusted",
            "care": "Use this detector with care",
            "distrust": "Do not trust this detector",
        }[self.verdict]
        unseen = left_out(self.findings)
        without = f" The budget left out {', '.join(unseen)}." if unseen else ""
        if 0 < self.rows < FEWEST_TO_TRUST:
            without += f" Only {self.rows} normal rows were looked at; {FEWEST_TO_TRUST} and more can tell."
        if self.failure_probability is None:
            return f"{words}; too little could be examined to say how likely it is to miss outliers.{without}"
        p = self.failure_probability
        shown = "less than 1%" if p < 0.01 else "more than 99%" if p > 0.99 else f"{p:.0%}"
        return f"{words}: that it misses outliers which nearest neighbours see has a probability of {shown}.{without}"

    def __str__(self) -> str:
        lines = [f"{one.check}: {one.verdict}. {one.told} {one.advice}".strip() for one in self.findings]
        return "\n".join([self.sentence, *lines])
