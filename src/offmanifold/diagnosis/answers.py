"""Three questions about a fitted model: is its latent space right, its network, and are its gradients?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.variational import COLLAPSE

# A gap of so many standard deviations of the held-out scores is worth a word (Cohen's "medium"): four in ten honest
# detectors of the zoo that are good have one of 0.2.
NOTABLE_GAP = 0.5
# Gradients that end so many times where they began have grown.
GROWN = 10.0
SEARCH = "`offmanifold fit --capacity auto` (suggest_capacity in Python) compares sizes on held-out rows"


def answers(detector: OutlierDetector) -> dict[str, str]:
    """Answer by name what can be answered from ``fit_report_`` and ``history_``, in words.

    Returns
    -------
    dict of str
        "latent size" (detectors with a posterior), "capacity", "gradients" (as far as they were recorded), "training"
        (where there is something to say of it).
    """
    report = detector.fit_report_
    found = {}
    if "latents" in report:
        found["latent size"] = _latent_size(report["latents"])
    if "score" in report:
        found["capacity"] = _capacity(report["score"], detector.score_unit, searchable="latents" in report)
    gradients = _gradients(detector, report.get("gamma", {}))
    if gradients:
        found["gradients"] = gradients
    if remarks := detector.training_remarks():
        found["training"] = " ".join(map(" ".join, remarks))
    return found


def _latent_size(latents: Mapping[str, Any]) -> str:
    active, total = latents["active"], len(latents["kl"])
    if active == 0:
        return COLLAPSE
    used = f"{active} of {total} latents are active (more than {latents['threshold']:g} nats a row)"
    if active < total:
        return f"{used}: large enough; training has pruned the others."
    return f"{used}: perhaps too few. Try latent_dim={2 * total}; {SEARCH}."


def overfitted(score: Mapping[str, Any]) -> bool:
    """Say whether training rows score notably higher than held-out ones: ``fit_report_["score"]``."""
    gap = score["gap"]
    return bool(gap["low"] > 0 and gap["value"] > NOTABLE_GAP * score["spread"])


def norms_of(detector: OutlierDetector) -> tuple[float, float] | None:
    """Return ‖∂L/∂z‖ at the first and at the last check that recorded it."""
    norms = [record["gradient_norm/latent"] for record in detector.history_ if "gradient_norm/latent" in record]
    return (norms[0], norms[-1]) if len(norms) > 1 else None


def gammas_of(detector: OutlierDetector) -> tuple[float, float] | None:
    """Return γ at the first and at the last check that recorded it."""
    gammas = [record["gamma"] for record in detector.history_ if "gamma" in record]
    return (gammas[0], gammas[-1]) if gammas else None


def grew_without_reason(detector: OutlierDetector) -> bool:
    """Say whether gradients grew GROWN times more than γ fell, which has to make them grow (P4, §2)."""
    norms, gammas = norms_of(detector), gammas_of(detector)
    if norms is None:
        return False
    fell = max(1.0, gammas[0] / gammas[1]) if gammas else 1.0
    return norms[1] > GROWN * fell * norms[0]


def _capacity(score: Mapping[str, Any], unit: str, *, searchable: bool) -> str:
    gap, spread = score["gap"], score["spread"]
    if not (spread > 0 and math.isfinite(gap["low"]) and math.isfinite(gap["high"])):
        return "there are too few held-out rows to say whether the network is too large."
    told = (
        f"training rows score {gap['value']:+.4g} against held-out ones [{gap['low']:.4g}, {gap['high']:.4g}] ({unit}; "
        f"the held-out scores' standard deviation is {spread:.4g})"
    )
    if overfitted(score):
        return (
            f"{told}: the model knows its training rows better than others. A smaller network, fewer steps or more "
            "rows would generalise better."
        )
    advice = f" Whether a larger one would be better: {SEARCH}." if searchable else ""
    return f"{told}: no sign of a network that is too large.{advice}"


def _gradients(detector: OutlierDetector, gamma: Mapping[str, Any]) -> str | None:
    norms = norms_of(detector)
    if norms is None:
        return None
    told = f"‖∂L/∂z‖ went from {norms[0]:.3g} to {norms[1]:.3g} nats"
    gammas = gammas_of(detector)
    if gammas:
        told += f" while γ went from {gammas[0]:.3g} to {gammas[1]:.3g}"
    if gamma.get("at_floor"):
        return f"{told}, its floor: the data lie on a manifold without noise, or are constant. The scores are finite."
    if norms[1] <= GROWN * norms[0]:
        return f"{told}: nothing unusual."
    if not grew_without_reason(detector):
        return f"{told}: as it must be where γ falls with the error (P4, §2); not a bug."
    return f"{told}, which γ does not explain. Try a smaller learning_rate or gamma='continuation'."
