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


class Size(NamedTuple):
    """What a scale of a study takes; images of smaller sides than the files' are means of their pixels."""

    train_images: int
    test_images: int
    side: int
    steps: int
    network: str
    capacity: float
    latent_dim: int
    learning_rate: float
    optimizer: str = "rmsprop"

    def job(self, likelihood: str) -> Job:
        """Return what all jobs have in common."""
        return {
            "train_images": self.train_images,
            "test_images": self.test_images,
            "side": self.side,
            "parameters": {
                "network": self.network, "latent_dim": self.latent_dim, "capacity": self.capacity, "steps": self.steps,
                "batch_size": 50, "samples": 1, "calibration_fraction": 0.05, "likelihood": likelihood,
                "optimizer": self.optimizer, "schedule": "constant", "learning_rate": self.learning_rate,
            },
        }  # fmt: skip


# P1: all images, 100 epochs of batches of 50 (300 where negatives are adversarial) by RMSProp (grey) or Adam (colour)
# at 1e-4; fewer steps are larger ones. It takes adversarial training thousands of steps to come out ahead: a laptop has
# the time for them at half the resolution.
GREY = {
    "smoke": Size(150, 40, 14, 2, "strided", 0.1, 10, 3e-4),
    "laptop": Size(20_000, 1_000, 14, 3_000, "strided", 0.125, 10, 3e-4),
    "paper": Size(60_000, 10_000, 28, 120_000, "p1-grey", 1.0, 10, 1e-4),
}
COLOUR = {
    "smoke": Size(100, 30, 16, 2, "strided", 0.1, 32, 3e-4),
    "laptop": Size(8_000, 1_000, 16, 3_000, "strided", 0.25, 32, 3e-4),
    "paper": Size(50_000, 10_000, 32, 100_000, "p1-colour", 1.0, 100, 1e-4, "adam"),
}


def size_note(job: Job) -> str:
    """Return what a table says of its scale."""
    own, side = job["parameters"], job["side"]
    p1 = own["network"].startswith("p1")
    small = ", P1's network" if p1 else f" of {side} × {side} pixels, {own['network']} network"
    return f"{job['train_images']:,} training images{small} × {own['capacity']:g}, {own['steps']:,} steps"


def at_side(images: Pixels, side: int) -> Pixels:
    """Return images ``(n, H, H)`` or ``(n, H, H, 3)`` with ``side`` in place of H, means of their pixels."""
    factor = images.shape[1] // side
    if factor == 1:
        return images
    blocks = images.reshape(len(images), side, factor, side, factor, *images.shape[3:])
    means: npt.NDArray[np.float64] = blocks.mean((2, 4))
    return means.round().astype(np.uint8)


def untrained(row: str, settings: dict[str, Any], **others: Any) -> Any:
    """Return a detector without negatives ("none"), for given ones ("auxiliary"), or of a source of NegativeVAE."""
    if row == "none":
        return VAE(**settings, **others)
    return NegativeVAE(**settings, negatives="auto" if row == "auxiliary" else row, **others)


def fitted(
    row: str, train: Pixels, auxiliary: Pixels | None, settings: dict[str, Any], seed: int
) -> VariationalDetector:
    """Train, with the negatives given if any are."""
    given = {} if auxiliary is None else {"negatives": auxiliary}
    detector: VariationalDetector = untrained(row, settings, random_state=seed, verbose=False).fit(train, **given)
    return detector


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
