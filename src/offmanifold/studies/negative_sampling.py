"""What the studies of P1 share: a model with one kind of negatives, and its two scores on other images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from offmanifold.detectors.negative_vae import NegativeVAE
from offmanifold.detectors.vae import VAE
from offmanifold.detectors.variational import VariationalDetector
from offmanifold.measures.detection import auroc
from offmanifold.studies.core import Record, shown

Pixels = npt.NDArray[np.uint8]
SCORES = {"bpd": "bits/dim", "kl": "KL"}
NOISE_MODELS = {"Bernoulli": "bernoulli", "Gaussian, σ = 1": "unit-gaussian"}


def fitted(
    row: str, train: Pixels, auxiliary: Pixels | None, settings: dict[str, Any], seed: int
) -> VariationalDetector:
    """Train without negatives ("none"), on given ones ("auxiliary"), or on those of a source of NegativeVAE."""
    if row == "none":
        return VAE(**settings, random_state=seed, verbose=False).fit(train)
    if row == "auxiliary":
        return NegativeVAE(**settings, random_state=seed, verbose=False).fit(train, negatives=auxiliary)
    return NegativeVAE(**settings, negatives=row, random_state=seed, verbose=False).fit(train)


def compared(detector: VariationalDetector, normal: Pixels, others: Mapping[str, Pixels]) -> dict[str, Any]:
    """Return the AUROC of both scores for each kind of images by name, and what training ended with."""
    own = detector.scores(normal)
    found: dict[str, Any] = {}
    for name, images in others.items():
        odd = detector.scores(images)
        found[name] = {
            "bpd": auroc(own["elbo"], odd["elbo"]).to_json(),
            "kl": auroc(own["kl"], odd["kl"]).to_json(),
        }
    (phase,) = detector.training_summary().values()
    return {
        "auroc": found,
        "steps": phase["steps"],
        "rolled_back": phase["rolled_back"],
        "bits_per_dim_unit": float(-own["elbo"].mean() / (detector.spec_.dimensions * np.log(2))),
    }


def cell(records: list[Record], name: str, score: str) -> str:
    """Return the mean AUROC over seeds with its interval, as tables show it."""
    return shown([record["metrics"]["auroc"][name][score]["value"] for record in records], share=True)


def values(records: list[Record], name: str, score: str) -> list[float]:
    """Return the AUROC of each seed."""
    return [record["metrics"]["auroc"][name][score]["value"] for record in records]
