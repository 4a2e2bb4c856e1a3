"""Does arithmetic in bfloat16 change what a normalised autoencoder finds? A held-out digit, in either arithmetic.

    python benchmarks/precision.py [--digits 1 9] [--seeds 0 1 2] [--scale laptop]

Trains as `study run mnist-holdout` does (laptop: some 25 minutes of a core without bfloat16 units a run), and prints
AUROC for each digit and seed, and the mean difference with Student's 95 % interval. Of each model trained in bfloat16
also the gradients that its chains follow, in bfloat16 against float32: relative error and cosine, medians over 128
test digits, at 128 decoded draws of the prior, and for the codes of these, where latent chains begin.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from offmanifold import NAE, auroc
from offmanifold.measures.estimates import mean_of
from offmanifold.probability.latents import prior_sample
from offmanifold.sampling.chain import Energy, State, evaluated
from offmanifold.studies import mnist_holdout
from offmanifold.training.precision import computing_in

ROWS = 128


def gradients(detector: NAE, images: Tensor) -> dict[str, tuple[float, float]]:
    """Return (relative error, cosine), medians over rows, of the gradients in bfloat16, by where they are taken."""
    model, settings = detector.module_, detector.settings_
    generator = torch.Generator().manual_seed(0)
    codes = prior_sample(ROWS, settings["latent_dim"], settings["latent"], generator, torch.device("cpu"))
    places: dict[str, tuple[Tensor, Energy]] = {
        "digits": (images, model.energy),
        "decoded prior": (model.decode(codes), model.energy),
        "codes": (codes, lambda z: model.energy(model.decode(z))),
    }
    found = {}
    for name, (rows, energy) in places.items():
        both = []
        for dtype in (torch.float32, torch.bfloat16):
            with computing_in(dtype, model):
                gradient = evaluated(State(rows), energy).gradient
            assert gradient is not None
            both.append(gradient.flatten(1).double())
        exact, fast = both
        errors = (fast - exact).norm(dim=1) / exact.norm(dim=1)
        found[name] = float(errors.median()), float(cosine_similarity(fast, exact).median())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scale", choices=list(mnist_holdout.SIZES), default="laptop")
    options = parser.parse_args()
    _, images, test = mnist_holdout.SIZES[options.scale]
    settings = mnist_holdout.parameters_of("nae", options.scale, {"negatives": "omi", "verbose": False})
    print(
        "| digit | seed | float32 | bfloat16 | gradients in bfloat16: relative error, cosine |\n|---|---|---|---|---|"
    )
    found = []
    for digit in options.digits:
        train, mnist = mnist_holdout.without(digit, images)
        normal, odd = (mnist.test[mask][:test] for mask in (mnist.test_labels != digit, mnist.test_labels == digit))
        some = torch.tensor(normal[:ROWS, None] / 255, dtype=torch.float32)
        for seed in options.seeds:
            pair = []
            for precision in ("float32", "bfloat16"):
                detector = NAE(**settings, precision=precision, random_state=seed).fit(train)
                pair.append(auroc(detector.score_samples(normal), detector.score_samples(odd)).value)
            found.append(pair)
            told = "; ".join(f"{name} {e:.2%}, {c:.5f}" for name, (e, c) in gradients(detector, some).items())
            print(f"| {digit} | {seed} | {pair[0]:.3f} | {pair[1]:.3f} | {told} |", flush=True)
    mean = mean_of(np.diff(np.array(found), axis=1)[:, 0])
    print(f"\nbfloat16 minus float32: {mean.value:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]")


if __name__ == "__main__":
    main()
