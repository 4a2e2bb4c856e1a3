"""Does arithmetic in bfloat16 change what a normalised autoencoder finds? A held-out digit, in either arithmetic.

    python benchmarks/precision.py [--digits 1 9] [--seeds 0 1 2] [--scale laptop]

Trains as `study run mnist-holdout` does (laptop: some 25 minutes of a core without bfloat16 units a run), and prints
AUROC for each digit and seed, and the mean difference with Student's 95 % interval. Of each model trained in bfloat16
also the gradients that its chains follow, in bfloat16 against float32: relative error and cosine, medians over 128
test digits, at 128 decoded draws of the prior, and for the codes of these, where latent chains begin. Beside
them the same where float32 says which value each max pooling takes and what each ReLU lets pass: what rounding does by
itself.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, max_pool2d

from offmanifold import NAE, auroc
from offmanifold.measures.estimates import mean_of
from offmanifold.probability.latents import prior_sample
from offmanifold.sampling.chain import Energy, State, evaluated
from offmanifold.studies import mnist_holdout
from offmanifold.training.precision import computing_in

ROWS = 128


@contextlib.contextmanager
def choosing(module: nn.Module, choices: list[Tensor], *, given: bool) -> Iterator[None]:
    """Write down, call by call, what max poolings take and ReLUs let pass; or, ``given`` these, let them decide."""
    left = iter(choices)

    def pooled(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not given:
            choices.append(max_pool2d(inputs[0], 2, return_indices=True)[1].flatten(2))
            return None
        return inputs[0].flatten(2).gather(2, next(left)).view_as(output)

    def passed(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not given:
            choices.append(output > 0)
            return None
        return inputs[0] * next(left)

    hooks = {nn.MaxPool2d: pooled, nn.ReLU: passed}
    handles = [part.register_forward_hook(hooks[type(part)]) for part in module.modules() if type(part) in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


Differences = dict[str, tuple[float, float]]


def gradients(detector: NAE, images: Tensor) -> tuple[Differences, Differences]:
    """Return (relative error, cosine), medians over rows, of the gradients in bfloat16, by where they are taken.

    First of the gradients as they are, then with float32's choices.
    """
    model, settings = detector.module_, detector.settings_
    generator = torch.Generator().manual_seed(0)
    codes = prior_sample(ROWS, settings["latent_dim"], settings["latent"], generator, torch.device("cpu"))
    with torch.no_grad():
        decoded = model.decode(codes)
    places: dict[str, tuple[Tensor, Energy]] = {
        "digits": (images, model.energy),
        "decoded prior": (decoded, model.energy),
        "codes": (codes, lambda z: model.energy(model.decode(z))),
    }

    def gradient(rows: Tensor, energy: Energy, dtype: torch.dtype) -> Tensor:
        with computing_in(dtype, model):
            found = evaluated(State(rows), energy).gradient
        assert found is not None
        return found.flatten(1).double()

    def difference(fast: Tensor, exact: Tensor) -> tuple[float, float]:
        errors = (fast - exact).norm(dim=1) / exact.norm(dim=1)
        return float(errors.median()), float(cosine_similarity(fast, exact).median())

    plain, alike = {}, {}
    for name, (rows, energy) in places.items():
        choices: list[Tensor] = []
        with choosing(model, choices, given=False):
            exact = gradient(rows, energy, torch.float32)
        plain[name] = difference(gradient(rows, energy, torch.bfloat16), exact)
        with choosing(model, choices, given=True):
            alike[name] = difference(gradient(rows, energy, torch.bfloat16), exact)
    return plain, alike


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scale", choices=list(mnist_holdout.SIZES), default="laptop")
    options = parser.parse_args()
    _, images, test = mnist_holdout.SIZES[options.scale]
    settings = mnist_holdout.parameters_of("nae", options.scale, {"negatives": "omi", "verbose": False})
    print("| digit | seed | float32 | bfloat16 | gradients: relative error, cosine | with float32's choices |")
    print("|---|---|---|---|---|---|")
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
            told = [
                "; ".join(f"{name} {error:.2%}, {cosine:.5f}" for name, (error, cosine) in places.items())
                for places in gradients(detector, some)
            ]
            print(f"| {digit} | {seed} | {pair[0]:.3f} | {pair[1]:.3f} | {told[0]} | {told[1]} |", flush=True)
    mean = mean_of(np.diff(np.array(found), axis=1)[:, 0])
    print(f"\nbfloat16 minus float32: {mean.value:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]")


if __name__ == "__main__":
    main()
