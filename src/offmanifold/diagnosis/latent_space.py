"""Checks of a detector's latent space: what its codes say of rows, and what it makes of codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from offmanifold.detectors.latent import LatentMixin
from offmanifold.diagnosis.findings import Finding, Grade, other_than, to_json
from offmanifold.diagnosis.patient import COPIES, FEWEST, Patient
from offmanifold.measures.detection import proportion
from offmanifold.measures.estimates import Estimate, rank_correlation
from offmanifold.measures.latents import active_latents, aggregate_mmd

# A code whose ranks the nearest rows share less than this tells of what they do not have in common: noise.
SHARED = 0.2
# So many made-up rows may pass far from the data: of honest AEs' and VAEs' on eleven sets of rows 3 % did at most.
WIDE = 0.1


def latents(patient: Patient) -> Finding:
    """Are latents used, are there enough of them, and do they tell of the data or of their noise?

    Whether training pruned latents is in the model's file. Where there are rows, codes are looked at as well: how far
    they are from their prior (MMD, P4 Fig. 4a), and which of them the nearest rows do not share, as noise is not
    shared (P2 §4: latents beyond those of the data are spent on noise). The last two are told and not graded.
    """
    report = patient.detector.fit_report_.get("latents")
    codes = _codes(patient)
    details = {**(report or {}), **codes}
    told = [] if report is None else [f"{report['active']} of {len(report['kl'])} latents carry more than "
                                      f"{report['threshold']:g} nats about a row."]  # fmt: skip
    if codes:
        told.append(_spent_on_noise(codes["shared"].values()))
    if report is None:
        if not codes:
            return Finding("latents", "not applicable", "The detector has no latents that could be looked at.")
        return Finding("latents", "fine", " ".join(told), _mmd(codes), "MMD² of codes and prior", details=details)
    grade: Grade = "fine"
    advice = ""
    if report["active"] == 0:
        grade, told = "fail", [f"The posterior has collapsed: {told[0]}"]
        advice = "Lower beta or gamma, train for longer, or raise learning_rate."
    elif report["active"] == len(report["kl"]):
        grade, advice = "warn", f"Compare with latent_dim={2 * report['active']}, or fit with --capacity auto."
        told.insert(1, "There may be too few.")
    return Finding("latents", grade, " ".join(told), _mmd(codes), "MMD² of codes and prior", advice, details)


def _codes(patient: Patient) -> dict[str, Any]:
    """Return what rows show of the codes: their distance to the prior, and what neighbours share of each used one."""
    detector = patient.detector
    if patient.count < FEWEST or not isinstance(detector, LatentMixin):
        return {}
    rows, known = (patient.users(part) for part in (patient.normal, patient.reference))
    codes, theirs = (np.asarray(detector.transform(part)) for part in (rows, known))
    theirs = theirs[patient.neighbours.around(patient.normal)]
    used = active_latents(detector, rows) if hasattr(detector, "posterior") else range(codes.shape[1])
    found: dict[str, Any] = {
        "shared": {f"latent {j + 1}": rank_correlation(codes[:, j], theirs[..., j].mean(1)).to_json() for j in used}
    }
    if detector.latent_prior is not None:
        found["aggregate_mmd"] = aggregate_mmd(detector, rows, random_state=patient.seed).to_json()
    return found


def _mmd(codes: dict[str, Any]) -> Estimate | None:
    return Estimate(**codes["aggregate_mmd"]) if "aggregate_mmd" in codes else None


def _spent_on_noise(shared: Any) -> str:
    count, total = sum(one["high"] < SHARED for one in shared), len(shared)
    if not count:
        return "Near rows have near codes."
    return f"{count} of {total} codes differ between nearest rows as noise does: fewer latents may do."


def manifold(patient: Patient) -> Finding:
    """Are rows that the model makes up itself, and calls normal, as near to the data as normal rows are?

    Rows decoded from between two normal rows' codes, or from the prior, are no outliers: a good model's lie on the
    data, and then neighbours see no difference either. So their AUROC is told beside the plain methods' and is not
    graded; what is, is how many of them the detector passes that lie far from every normal row: its manifold is wider
    than the data, and outliers in those places would pass as well. The combination does not read it, and it never
    fails, for how well it foretells missed outliers has not been measured.
    """
    made = patient.decoded()
    if not made:
        return Finding("manifold", "not applicable", "The detector has no latent space to make rows from.")
    if patient.reach is None:
        return Finding("manifold", "not applicable", COPIES)
    wide = {
        family: patient.far(rows) & (patient.score(rows) >= patient.detector.offset_) for family, rows in made.items()
    }
    shares = {family: proportion(int(passed.sum()), len(passed)) for family, passed in wide.items()}
    worst = max(shares, key=lambda family: shares[family].value)
    number = shares[worst]
    told = {
        "between": f"{number.value:.0%} of the rows decoded from between two normal rows' codes",
        "prior": f"{number.value:.0%} of the rows decoded from the prior",
    }[worst]
    details = {
        "families": to_json(patient.beside_plain(made)),
        "wide": {family: share.to_json() for family, share in shares.items()},
    }
    grade: Grade = "warn" if number.low > WIDE else "fine"
    advice = "" if grade == "fine" else f"Use fewer latents, or {other_than(patient.detector.key)}."
    told = f"{told} pass as normal, far from every normal one."
    return Finding("manifold", grade, told, number, "share of rows", advice, details)
