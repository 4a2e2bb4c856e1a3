"""Chains and training steps of the normalised autoencoder, as ratios within one run.

    python benchmarks/chains.py [--device cpu] [--rounds 5] [--capacity 1.0]

Against a plain implementation in the published order of operations: float32 in PyTorch's default arrangement, a
gradient before the chain and one after every step (the last is thrown away), every step's state and drift kept on the
host, a replay buffer as a list of single codes on the host. Both make one update a chain. What the fast path's
arithmetic changes: ``precision.py``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offmanifold import NAE, atomic
from offmanifold.data.inputs import InputSpec
from offmanifold.detectors.normalized_autoencoder import training_chain
from offmanifold.networks import products
from offmanifold.networks.network import initialise
from offmanifold.sampling import langevin
from offmanifold.sampling.chain import run
from offmanifold.training.precision import choose_dtype, computing_in

BATCH, STEPS, LATENT_STEPS = 128, 50, 10
SPEC = InputSpec("image", (1, 28, 28), "hw")


def build(device: torch.device, capacity: float) -> tuple[NAE, dict[str, Any], Any]:
    detector = NAE(preset="mnist", capacity=capacity, device=str(device))
    detector.spec_, detector._device = SPEC, device
    settings = detector._resolved(SPEC, 1000)
    model = detector._build(SPEC, settings)
    initialise(model, torch.Generator().manual_seed(0))
    return detector, settings, model.to(device)


def plain_chain(
    energy: Callable[[Tensor], Tensor],
    x: Tensor,
    steps: int,
    step_size: float,
    noise: float,
    *,
    anneal: bool,
    clip: float | None,
    sphere: bool,
) -> Tensor:
    """Run the chain as published."""

    def gradient(at: Tensor) -> Tensor:
        at.requires_grad_(True)
        return torch.autograd.grad(energy(at).sum(), at)[0]

    states, drifts = [], []
    slope = gradient(x)
    for step in range(steps):
        if clip is not None:
            slope = slope.clamp(-clip, clip)
        scale = noise / (step + 1) if anneal else noise
        drift = -step_size * slope + scale * torch.randn_like(x)
        x = (x + drift).detach()
        x = x / x.norm(dim=1, keepdim=True) if sphere else x.clamp(0, 1)
        states.append(x.cpu())
        drifts.append(drift.detach().cpu())
        slope = gradient(x)
    return x.detach()


def plain_step(model: Any, optimizer: torch.optim.Optimizer, rows: Tensor, buffer: list[Tensor]) -> None:
    """One whole training step as published."""
    drawn = [
        random.choice(buffer) if buffer and random.random() < 0.95 else torch.nn.functional.normalize(
            torch.randn(32), dim=0
        )
        for _ in range(len(rows))
    ]  # fmt: skip
    codes = torch.stack(drawn).to(rows.device)
    codes = plain_chain(
        lambda z: model.energy(model.decode(z)), codes, LATENT_STEPS, 0.2, 0.05, anneal=False, clip=None, sphere=True
    )
    buffer.extend(codes.cpu())
    del buffer[:-10_000]
    start = model.decode(codes).detach()
    samples = plain_chain(model.energy, start, STEPS, 10.0, 0.05, anneal=True, clip=0.01, sphere=False)
    positive, negative = model.energy(rows), model.energy(samples)
    penalty = sum(parameter.square().sum() for parameter in model.encoder.parameters())
    loss = positive.mean() - negative.mean() + negative.square().mean() + 1e-4 * penalty
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()


def in_default_arrangement(model: Any) -> None:
    """Undo what makes the networks fast: arrangement and layers."""
    for network in (model.encoder, model.decoder):
        network.convolutional = False
        network.body.to(memory_format=torch.contiguous_format)
        for layer in network.modules():  # the layers differ in what they do, not in what they hold
            if isinstance(layer, products.Conv2d | products.ConvTranspose2d):
                layer.__class__ = type(layer).__base__


def timed(works: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(rounds + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repetition:  # the first warms up
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--capacity", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    options = parser.parse_args()
    device = torch.device(options.device)
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.rand(BATCH, 1, 28, 28, generator=generator, device=device)

    _, _, plain = build(device, options.capacity)
    in_default_arrangement(plain)
    detector, settings, model = build(device, options.capacity)
    dtype = choose_dtype("auto", model, device)
    chain = training_chain(model, settings, SPEC.shape)
    (phase,) = detector._phases(model, settings)[1:]
    (update,) = phase.updates
    optimizer = update.optimizer.build(update.groups)
    weights = [parameter for group in update.groups for parameter in group.parameters]

    def our_chain() -> None:
        with computing_in(dtype, model):
            run(langevin.step, generator, rows, model.energy, chain.kernel, STEPS)

    def our_step() -> None:
        with computing_in(dtype, model):
            update.prepare(rows, generator)
            loss = update.loss(rows, generator)[0].mean()
            for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = slope
            optimizer.step()

    plain_optimizer = torch.optim.Adam(plain.parameters(), 1e-5)
    buffer: list[Tensor] = []
    chains = timed(
        {
            "plain": lambda: plain_chain(
                plain.energy, rows.clone(), STEPS, 10.0, 0.05, anneal=True, clip=0.01, sphere=False
            ),
            "ours": our_chain,
        },
        options.rounds,
        device,
    )
    steps = timed(
        {"plain": lambda: plain_step(plain, plain_optimizer, rows, buffer), "ours": our_step},
        max(2, options.rounds // 2),
        device,
    )
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "capacity": options.capacity,
        "arithmetic": str(dtype),
        "chain of 50 steps": chains | {"ratio": chains["plain"] / chains["ours"]},
        "training step": steps | {"ratio": steps["plain"] / steps["ours"]},
        "seconds an epoch of 54 000 images": steps["ours"] * 54_000 / BATCH,
    }
    text = json.dumps(result, indent=1)
    print(text)
    options.out.mkdir(exist_ok=True)
    atomic.write(options.out / f"chains-{device.type}.json", text + "\n")


if __name__ == "__main__":
    main()
