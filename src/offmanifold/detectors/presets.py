"""Settings of the normalised autoencoder by name: ours, and the paper's."""

from __future__ import annotations

from typing import Any

from offmanifold import parameters
from offmanifold.data.inputs import InputSpec
from offmanifold.detectors.autoencoder import NONE, WIDE
from offmanifold.detectors.chains import size_of_network
from offmanifold.networks import choose


def _by_dimension(spec: InputSpec) -> tuple[int, float, float]:
    """Return the chain on x: P3's step size of 10, for MNIST and for CIFAR-10, by dimension, and its noises."""
    return (15, 10 / 3072 * spec.dimensions, 0.02) if spec.colour else (15, 0.0128 * spec.dimensions, 0.05)


def _on_codes(spec: InputSpec) -> tuple[int, float, float]:
    """Return the chain on z: P3's for MNIST, and for CIFAR-10."""
    return (10, 1.0, 0.02) if spec.colour else (10, 0.2, 0.05)


def _clip(spec: InputSpec) -> float:
    """Return P3's 0.01 of gradients, for MNIST and for CIFAR-10, by dimension: E is a mean, λ goes by it, too."""
    return 0.01 * ((3072 if spec.colour else 784) / spec.dimensions)


def _codes(spec: InputSpec) -> int:
    return 64 if spec.colour else 32


def _by_size(spec: InputSpec) -> str:
    return size_of_network(spec.shape)


def _learns_fast(spec: InputSpec) -> str:
    """Return P3's Conv28 where it fits, but not its others, which minutes of training do not suffice for."""
    return "conv28" if spec.shape[1:] == (28, 28) else choose.for_images(spec.shape)


def _by_colour(spec: InputSpec) -> int:
    """Return how many steps to train against samples: twice as many for images in colour."""
    return 480 if spec.colour else 240


# What P3's presets have in common.
_PAPER: dict[str, Any] = {
    "temperature": 1.0, "adjusted": False, "noise": NONE, "updates_per_chain": 1, "average": 0.0,
    "schedule": "constant", "starts_at_codes": False, "network": _by_size,
}  # fmt: skip
# What "auto" means, by preset; functions are of the data's form, and a latent size "auto" is as for AE. Chains are
# (steps, λ, σ). The first two are ours (docs/defaults.md); the others are P3's Table 11 and appendix D.3, with epochs
# turned into steps at batch 128, but for CIFAR-10's normalisation, which has the 10 epochs of the published run and not
# the appendix's 50. What is not printed: latent sizes for CIFAR-10 and CelebA, and how long to train on CelebA, which
# is as for CIFAR-10 here.
PRESETS: dict[str, dict[str, Any]] = {
    "images": {
        "latent_dim": _codes, "latent": "sphere", "capacity": 0.5, "latent_chain": _on_codes,
        "visible_chain": _by_dimension, "anneal": True, "clip": _clip, "adjusted": False, "temperature": 1.0,
        "encoder_penalty": 1e-4, "noise": NONE, "updates_per_chain": 8, "average": 0.985,
        "pretraining_steps": 5000, "pretraining_rate": 1e-3, "steps": _by_colour, "rate": 5e-5, "schedule": "one-cycle",
        "dequantise": False, "starts_at_codes": False, "network": _learns_fast,
    },
    "tables": {
        "latent_dim": "auto", "latent": "euclidean", "capacity": 1.0, "latent_chain": (10, 0.005, 0.1),
        "visible_chain": _by_dimension, "anneal": True, "clip": None, "adjusted": False, "temperature": 1.0,
        "encoder_penalty": 0.0, "noise": WIDE, "updates_per_chain": 4, "average": 0.985,
        "pretraining_steps": 500, "pretraining_rate": 2e-3, "steps": 60, "rate": 2e-4, "schedule": "one-cycle",
        "dequantise": False, "starts_at_codes": False, "network": "resmlp",
    },
    "2d": _PAPER | {
        "latent_dim": 3, "latent": "euclidean", "capacity": 1.0, "latent_chain": (10, 0.005, 0.1),
        "visible_chain": (30, 0.005, 0.1), "anneal": False, "clip": None, "adjusted": True, "temperature": "learned",
        "encoder_penalty": 0.0, "pretraining_steps": 0, "pretraining_rate": 1e-4, "steps": 2000, "rate": 1e-5,
        "dequantise": False, "starts_at_codes": True, "network": "fcres2",
    },
    "mnist": _PAPER | {
        "latent_dim": 32, "latent": "sphere", "capacity": 1.0, "latent_chain": (10, 0.2, 0.05),
        "visible_chain": (50, 10.0, 0.05), "anneal": True, "clip": 0.01, "encoder_penalty": 1e-4,
        "pretraining_steps": 39_100, "pretraining_rate": 1e-4, "steps": 19_550, "rate": 1e-5, "dequantise": False,
    },
    "cifar10": _PAPER | {
        "latent_dim": 64, "latent": "sphere", "capacity": 1.0, "latent_chain": (20, 1.0, 0.02),
        "visible_chain": (40, 10.0, 0.02), "anneal": True, "clip": 0.01, "encoder_penalty": 1e-4,
        "pretraining_steps": 42_240, "pretraining_rate": 1e-4, "steps": 3520, "rate": 1e-5, "dequantise": True,
    },
    "celeba": _PAPER | {
        "latent_dim": 64, "latent": "sphere", "capacity": 1.0, "latent_chain": (20, 1.0, 0.02),
        "visible_chain": (40, 10.0, 0.02), "anneal": True, "clip": 0.01, "encoder_penalty": 0.0,
        "pretraining_steps": 42_240, "pretraining_rate": 1e-4, "steps": 3520, "rate": 1e-5, "dequantise": True,
    },
}  # fmt: skip


def resolve(preset: str, spec: InputSpec) -> dict[str, Any]:
    """Return what "auto" means by a preset, or by the one for such data, for data of this form.

    Raises
    ------
    InvalidParameter
        There is no such preset, or it is for other data.
    """
    table = spec.kind == "table"
    name = parameters.choice("preset", preset, ("auto", *PRESETS))
    if name == "auto":
        name = "tables" if table else "images"
    if (name in ("tables", "2d")) != table or (name == "2d" and spec.shape != (2,)):
        kind = {"tables": "tables", "2d": "tables of two columns of numbers"}.get(name, "images")
        raise parameters.InvalidParameter(
            f"preset={name!r} is for {kind}; the data are, as the network sees them, {spec.describe()}."
        )
    return {argument: value(spec) if callable(value) else value for argument, value in PRESETS[name].items()}
