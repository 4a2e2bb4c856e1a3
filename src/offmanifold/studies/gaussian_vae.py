"""What the studies of P0 and P4 share: a Gaussian VAE is trained, and everything they tabulate is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offmanifold.data import benchmarks
from offmanifold.data.benchmarks import Pixels
from offmanifold.detectors.vae import VAE
from offmanifold.measures.detection import auroc
from offmanifold.measures.estimates import difference_of_means
from offmanifold.measures.fitting import optimal_gamma, reconstruction_error
from offmanifold.measures.latents import ACTIVE, aggregate_mmd, latent_kl
from offmanifold.studies.cifar_ood import coloured
from offmanifold.studies.core import Record, shown
from offmanifold.studies.refusals import made

# Scale → training images, test images of each kind.
SIZES = {"smoke": (200, 50), "laptop": (6_000, 1_000), "paper": (50_000, 10_000)}
# P0, §4: Adam, 1e-4, 200 000 iterations; fewer steps take a larger rate.
TRAINING: dict[str, dict[str, Any]] = {
    "smoke": {"steps": 3, "batch_size": 32},
    "laptop": {"steps": 600, "batch_size": 64, "learning_rate": 1e-3, "schedule": "one-cycle"},
    "paper": {"steps": 200_000, "batch_size": 64, "learning_rate": 1e-4, "schedule": "constant"},
}

# Wide networks are slow: at laptop scale a batch is half of the other studies', and one draw of z does.
WIDE: dict[str, dict[str, int]] = {"smoke": {}, "laptop": {"batch_size": 32, "samples": 1}, "paper": {}}


def parameters_of(scale: str, **own: Any) -> dict[str, Any]:
    """Return the hyper-parameters at a scale: P0's network, γ learned, whatever ``own`` says otherwise."""
    shared = {"network": "strided", "optimizer": "adam", "gamma": "learned", "samples": 4, "calibration_fraction": 0.05}
    capacity = {"capacity": 0.1} if scale == "smoke" else {}
    return shared | TRAINING[scale] | own | capacity


def fashion(images: int, test: int) -> tuple[Pixels, Pixels, dict[str, Pixels]]:
    """Return Fashion-MNIST to train on and to test, and what is not of its kind."""
    own = benchmarks.images("fashion_mnist")
    others = {
        "MNIST": benchmarks.images("mnist").test[:test],
        "Omniglot": benchmarks.images("omniglot28").test[:test],
        "ConstantGray": made("ConstantGray", own.test[:test]),
        "Noise": made("Noise", own.test[:test]),
    }
    return own.train[:images], own.test[:test], others


def cifar(images: int, test: int) -> tuple[Pixels, Pixels, dict[str, Pixels]]:
    """Return CIFAR-10 to train on and to test, and what is not of its kind."""
    own = benchmarks.images("cifar10")
    others = {
        "Faces": benchmarks.images("lfw32").test[:test],
        "Fashion": coloured(benchmarks.images("fashion_mnist").test[:test]),
        "ConstantGray": made("ConstantGray", own.test[:test]),
    } | benchmarks.others_at_hand({"SVHN": "svhn"}, test)
    return own.train[:images], own.test[:test], others


DATA = {"fashion": fashion, "cifar": cifar}


def measured(detector: VAE, train: Pixels, test: Pixels, others: Mapping[str, Pixels]) -> dict[str, Any]:
    """Measure a fitted VAE: γ, bits/dim, the gap, latents, errors, and the AUROC of every kind by every score."""
    scores = {"train": detector.scores(train[:1000]), "test": detector.scores(test)}
    scores |= {kind: detector.scores(images) for kind, images in others.items()}
    dimensions, kl = detector.spec_.dimensions * np.log(2), latent_kl(detector, test)
    return {
        "gamma": float(np.mean(detector.gamma_)) if detector.gamma_ is not None else None,
        "gamma_closed_form": optimal_gamma(detector, train[:1000]).to_json(),
        "bits_per_dim": {kind: float(-own["elbo"].mean() / dimensions) for kind, own in scores.items()},
        "gap": difference_of_means(scores["train"]["elbo"], scores["test"]["elbo"]).to_json(),
        "reconstruction_error": reconstruction_error(detector, test).to_json(),
        "mmd": aggregate_mmd(detector, test).to_json(),
        "latent_kl": kl.tolist(),
        "active": int((kl > ACTIVE).sum()),
        "auroc": {
            kind: {name: auroc(scores["test"][name], scores[kind][name]).to_json() for name in scores["test"]}
            for kind in others
        },
        "arrays": {f"nll_{kind}": -own["elbo"].astype(np.float32) for kind, own in scores.items()},
    }


def column(records: list[Record], *path: str) -> str:
    """Return a metric's cell over the records' seeds."""
    values = []
    for record in records:
        value: Any = record["metrics"]
        for name in path:
            value = value.get(name, {}) if isinstance(value, dict) else {}
        if isinstance(value, int | float):
            values.append(float(value))
    return shown(values, share=path[0] == "auroc")


def by(records: list[Record], key: str) -> dict[Any, list[Record]]:
    """Group records by what their jobs say under ``key``, in ascending order."""
    found = sorted({record["job"][key] for record in records})
    return {value: [record for record in records if record["job"][key] == value] for value in found}
