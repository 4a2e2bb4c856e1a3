"""P3, Table 4: which detector, trained on MNIST, refuses images of other kinds?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from offmanifold.data import benchmarks
from offmanifold.data.benchmarks import Pixels
from offmanifold.studies import mnist_holdout
from offmanifold.studies.refusals import MADE, Row, Sets, made, study_of

KINDS = ("ConstantGray", "Half", "Chimera", "Omniglot", "Noise", "Fashion")


def _paper(*values: float) -> dict[str, float]:
    return dict(zip(KINDS, values, strict=False))


ROWS = {
    "kNN": Row(None),
    "PCA": Row(None),
    "AE": Row("ae", {"latent": "sphere"}, _paper(0.934, 0.523, 0.761, 0.885, 1.0)),
    "VAE(L)": Row("vae", {"gamma": 1.0, "score_by": "elbo"}),
    "IGEBM": Row("igebm", {}, _paper(1.0, 0.986, 0.948, 0.946, 1.0)),
    "NAE-OMI": Row("nae", {"negatives": "omi"}, _paper(1.0, 0.999, 0.992, 0.995, 1.0)),
    "MultiscaleDenoiser": Row("multiscale-denoiser"),
}


def chimeras(images: Pixels, labels: npt.NDArray[Any], n: int) -> Pixels:
    """Join the upper half of one digit and the lower half of another class, rows 11 to 16 zero (P3, appendix D.1)."""
    rng = np.random.default_rng(0)
    joined = images[:n].copy()
    for i in range(len(joined)):
        partner = rng.choice(np.flatnonzero(labels != labels[i]))
        joined[i, 14:] = images[partner, 14:]
    joined[:, 11:17] = 0
    return joined


def _sets(images: int, test: int) -> Sets:
    mnist = benchmarks.images("mnist")
    # Halves and chimeras are made of other test images than the normal ones, where there are enough.
    rest = slice(test, None) if 2 * test <= len(mnist.test) else slice(None)
    digits, labels = mnist.test[rest], mnist.test_labels[rest]
    characters = benchmarks.images("omniglot28").test
    others = {kind: made(kind, digits[:test]) for kind in KINDS if kind in MADE} | {
        "Chimera": chimeras(digits, labels, test),
        "Omniglot": characters[np.random.default_rng(0).permutation(len(characters))[:test]],
        "Fashion": benchmarks.images("fashion_mnist").test[:test],
    }
    return Sets(mnist.train[:images], mnist.test[:test], {kind: others[kind] for kind in KINDS})


STUDY = study_of(
    name="mnist-ood",
    title="Which detector, trained on MNIST, refuses images of other kinds?",
    paper="P3, Table 4",
    note="Trained on {train_images:,} MNIST images; {test_images:,} images of each kind at most.",
    rows=ROWS,
    kinds=KINDS,
    # The hold-out study's models, trained on all ten digits.
    sizes={scale: (images, test) for scale, (_, images, test) in mnist_holdout.SIZES.items()},
    parameters_of=mnist_holdout.parameters_of,
    sets=_sets,
)
