"""P3, Table 2: which detector, trained on CIFAR-10, refuses images of other kinds?"""

from __future__ import annotations

from typing import Any

import numpy as np

from offmanifold.data import benchmarks
from offmanifold.data.benchmarks import Pixels
from offmanifold.studies import mnist_holdout
from offmanifold.studies.refusals import Row, Sets, made, study_of

KINDS = ("ConstantGray", "Fashion", "SVHN", "Faces", "Noise")
# Scale → training images, test images of each kind.
SIZES = {"smoke": (200, 50), "laptop": (8_000, 1_000), "paper": (50_000, 10_000)}
# P3, Table 11, with the laptop's numbers of steps.
NORMALISED: dict[str, dict[str, Any]] = {
    "smoke": {},
    "laptop": {"steps": 480, "visible_chain": (15, 10.0, 0.02), "latent_chain": (10, 1.0, 0.02)},
    "paper": {"preset": "cifar10"},
}
# P3's Conv32 learns too slowly for a laptop (docs/defaults.md).
NETWORK = {"smoke": "conv32", "laptop": "strided", "paper": "conv32"}


def _paper(*values: float) -> dict[str, float]:
    """Name Table 2's columns: grey, FMNIST, SVHN, CelebA (our faces are others, so its value is left out), noise."""
    return {kind: value for kind, value in zip(KINDS, values, strict=True) if kind != "Faces"}


ROWS = {
    "kNN": Row(None),
    "PCA": Row(None),
    "AE": Row("ae", {"latent": "sphere"}, _paper(0.006, 0.650, 0.175, 0.655, 1.0)),
    "DAE": Row("ae", {"latent": "sphere", "noise": 0.3}, _paper(0.001, 0.671, 0.175, 0.669, 1.0)),
    "VAE(L)": Row("vae", {"gamma": 1.0, "score_by": "elbo"}, _paper(0.002, 0.767, 0.185, 0.684, 1.0)),
    "IGEBM": Row("igebm", {}, _paper(0.192, 0.216, 0.371, 0.477, 1.0)),
    "NAE-OMI": Row("nae", {"negatives": "omi"}, _paper(0.963, 0.819, 0.920, 0.887, 1.0)),
    "MultiscaleDenoiser": Row("multiscale-denoiser"),
}


def parameters_of(key: str, scale: str, own: dict[str, Any]) -> dict[str, Any]:
    """Return a row's hyper-parameters: those of the MNIST studies, with P3's latent size and chains, and a network."""
    parameters = mnist_holdout.parameters_of(key, scale, own)
    if key == "multiscale-denoiser":
        return parameters
    if key == "igebm":
        return parameters | {"network": "conv32"}
    parameters |= {"network": NETWORK[scale], "latent_dim": 64}
    return parameters | (NORMALISED[scale] if key == "nae" else {})


def coloured(images: Pixels) -> Pixels:
    """Pad grey 28×28 images with zeros to 32×32 and repeat them in three channels."""
    return np.repeat(np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None], 3, 3)


def _sets(images: int, test: int) -> Sets:
    cifar = benchmarks.images("cifar10")
    others = {
        "ConstantGray": made("ConstantGray", cifar.test[:test]),
        "Fashion": coloured(benchmarks.images("fashion_mnist").test[:test]),
    }
    others |= benchmarks.others_at_hand({"SVHN": "svhn"}, test)
    others |= {"Faces": benchmarks.images("lfw32").test[:test], "Noise": made("Noise", cifar.test[:test])}
    return Sets(cifar.train[:images], cifar.test[:test], others)


STUDY = study_of(
    name="cifar-ood",
    title="Which detector, trained on CIFAR-10, refuses images of other kinds?",
    paper="P3, Table 2",
    note="Trained on {train_images:,} CIFAR-10 images; {test_images:,} of each kind at most. SVHN: where svhn.npz lies "
    "beside them. The printed results are of a JPEG copy: only orderings compare with the paper's.",
    rows=ROWS,
    kinds=KINDS,
    sizes=SIZES,
    parameters_of=parameters_of,
    sets=_sets,
    colour=True,
)
