"""Does arithmetic in bfloat16 change what a normalised autoencoder finds? A held-out digit, in either arithmetic.

    python benchmarks/precision.py [--digits 1 9] [--seeds 0 1 2] [--scale laptop]

Trains as `study run mnist-holdout` does (laptop: some 25 minutes of a core without bfloat16 units a run), and prints
AUROC for each digit and seed, and the mean difference with Student's 95 % interval.
"""

from __future__ import annotations

import argparse

import numpy as np

from offmanifold import NAE, auroc
from offmanifold.measures.estimates import mean_of
from offmanifold.studies import mnist_holdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scale", choices=list(mnist_holdout.SIZES), default="laptop")
    options = parser.parse_args()
    _, images, test = mnist_holdout.SIZES[options.scale]
    settings = mnist_holdout.parameters_of("nae", options.scale, {"negatives": "omi", "verbose": False})
    print("| digit | seed | float32 | bfloat16 |\n|---|---|---|---|")
    found = []
    for digit in options.digits:
        train, mnist = mnist_holdout.without(digit, images)
        normal, odd = (mnist.test[mask][:test] for mask in (mnist.test_labels != digit, mnist.test_labels == digit))
        for seed in options.seeds:
            pair = []
            for precision in ("float32", "bfloat16"):
                detector = NAE(**settings, precision=precision, random_state=seed).fit(train)
                pair.append(auroc(detector.score_samples(normal), detector.score_samples(odd)).value)
            found.append(pair)
            print(f"| {digit} | {seed} | {pair[0]:.3f} | {pair[1]:.3f} |", flush=True)
    mean = mean_of(np.diff(np.array(found), axis=1)[:, 0])
    print(f"\nbfloat16 minus float32: {mean.value:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]")


if __name__ == "__main__":
    main()
