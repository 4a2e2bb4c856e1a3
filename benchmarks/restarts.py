"""Restarts a minute: a stack of small VAEs trained together against one after another (P2's toys)."""

from __future__ import annotations

import argparse
import time

import torch

from offmanifold.data.worlds import WORLDS
from offmanifold.studies import toy_vaes


def seconds(method: str, restarts: int, steps: int, *, stacked: bool) -> float:
    """Return how long so many restarts take."""
    world = WORLDS["figure-8"]
    train, held_out, _ = toy_vaes.data(world, 0, (5000, 100, 10))
    stacks = [range(restarts)] if stacked else [range(seed, seed + 1) for seed in range(restarts)]
    began = time.perf_counter()
    for seeds in stacks:
        model = toy_vaes.StackedVAE(world.dimension, 1, seeds, world.noise_variance)
        toy_vaes.fit_stack(model, train, held_out, toy_vaes.method_named(method), steps=steps, seed=0)
    return time.perf_counter() - began


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {arguments.restarts} restarts, {arguments.steps} steps each")
    for method in ("VAE", "IWAE"):
        seconds(method, 1, 5, stacked=True)
        alone = seconds(method, arguments.restarts, arguments.steps, stacked=False)
        together = seconds(method, arguments.restarts, arguments.steps, stacked=True)
        print(f"{method:5} one by one {alone:6.2f} s, together {together:6.2f} s: {alone / together:.1f} ×")


if __name__ == "__main__":
    main()
