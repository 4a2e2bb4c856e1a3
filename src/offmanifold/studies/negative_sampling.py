"""What the studies of P1 share: a model with one kind of negatives, and its two scores on other images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from offmanifold.detectors.negative_vae import NegativeVAE
from offmanifold.detectors.vae import VAE
from offmanifold.detectors.variational import VariationalDetector
from offmanifold.measures.detection import auroc
from offmanifold.studies.core import Job, Record, shown

Pixels = npt.NDArray[np.uint8]
SCORES = {"bpd": "bits/dim", "kl": "KL"}
NOISE_MODELS = {"Bernoulli": "bernoulli", "Gaussian, σ = 1": "unit-gaussian"}
# P1's optimiser; fewer steps are larger ones.
RMSPROP = {"optimizer": "rmsprop", "schedule": "constant"}
RATES = {"smoke": 3e-4, "laptop": 3e-4, "paper": 1e-4}


class Grey(NamedTuple):
    """What a scale of the studies of grey images takes; of smaller sides than 28 images are means of pixels."""

    train_images: int
    test_images: int
    side: int
    steps: int
    network: str
    capacity: float

    def job(self, scale: str, likelihood: str) -> Job:
        """Return what all jobs have in common."""
        return {
            "train_images": self.train_images,
            "test_images": self.test_images,
            "side": self.side,
            "parameters": {
                "network": self.network, "latent_dim": 10, "capacity": self.capacity, "steps": self.steps,
                "batch_size": 50, "samples": 1, "calibration_fraction": 0.05, "likelihood": likelihood, **RMSPROP,
                "learning_rate": RATES[scale],
            },
        }  # fmt: skip


# P1: all images, 100 epochs of batches of 50 (300 where negatives are adversarial). It takes adversarial training
# thousands of steps to come out ahead: a laptop has the time for them at half the resolution.
GREY = {
    "smoke": Grey(150, 40, 14, 2, "strided", 0.1),
    "laptop": Grey(20_000, 1_000, 14, 3_000, "strided", 0.125),
    "paper": Grey(60_000, 10_000, 28, 120_000, "p1-grey", 1.0),
}


def grey_note(job: Job) -> str:
    """Return what a table says of its scale."""
    own, side = job["parameters"], job["side"]
    small = f" of {side} × {side} pixels, {own['network']} network" if side < 28 else ", P1's network"
    return f"{job['train_images']:,} training images{small} × {own['capacity']:g}, {own['steps']:,} steps"


def at_side(images: Pixels, side: int) -> Pixels:
    """Return images ``(n, H, H)`` at ``(n, side, side)``, means of their pixels."""
    factor = images.shape[1] // side
    means: npt.NDArray[np.float64] = images.reshape(len(images), side, factor, side, factor).mean((2, 4))
    return means.round().astype(np.uint8)


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
