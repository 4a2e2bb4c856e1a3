"""Training P0's network (×1, γ learned), as ratios within one run.

    python benchmarks/vae.py [--steps 300] [--rounds 3] [--likelihood-steps 300]

Against the same module trained the plain way: float32 in PyTorch's default arrangement, a DataLoader with its default
settings, Adam as it comes. A short run checks itself more often than a study does: 60 steps instead of 300 took a fifth
of the ratio away. Also whether both end with the same held-out negative log-likelihood, over three seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import interleaved
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from offmanifold import VAE, atomic
from offmanifold.data import benchmarks
from offmanifold.data.inputs import Rows
from offmanifold.networks.network import Network, initialise
from offmanifold.training.loop import train
from offmanifold.training.precision import choose_dtype

KINDS = {"28 × 28 × 1": ("fashion_mnist", (2000, 28, 28)), "32 × 32 × 3": ("cifar10", (2000, 32, 32, 3))}
BATCH, RATE = 64, 1e-3


def images(name: str, shape: tuple[int, ...]) -> Any:
    """Return images of the set, or noise where it is not on this machine."""
    try:
        return benchmarks.images(name).train[: shape[0]]
    except benchmarks.DataMissing:
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class Pair:
    """One network trained our way, and one the plain way."""

    def __init__(self, pixels: Any) -> None:
        rows = Rows(pixels)
        self.detector = VAE(
            network="strided", gamma="learned", latent_dim=32, batch_size=BATCH, learning_rate=RATE,
            optimizer="adam", schedule="constant",
        )  # fmt: skip
        self.spec = rows.spec
        self.settings = self.detector._resolved(self.spec, len(rows))
        data = torch.from_numpy(np.asarray(rows.take(slice(None))))
        self.held_out, self.data = data[:200], data[200:]

    def model(self, seed: int, plain: bool) -> Any:
        model = self.detector._build(self.spec, self.settings)
        initialise(model, torch.Generator().manual_seed(seed))
        if plain:
            for part in model.modules():
                if isinstance(part, Network):
                    part.convolutional = False
                    part.body.to(memory_format=torch.contiguous_format)
        return model

    def ours(self, model: Any, steps: int, seed: int) -> None:
        settings = self.settings | {"steps": steps}
        dtype = choose_dtype("auto", model, self.data.device)
        train(model, self.detector._phases(model, settings), self.data, self.held_out, seed=seed, dtype=dtype)

    def plain(self, model: Any, steps: int, seed: int) -> None:
        torch.manual_seed(seed)
        optimizer = torch.optim.Adam(
            [
                {"params": [*model.encoder.parameters(), *model.decoder.parameters()]},
                {"params": list(model.likelihood.parameters()), "lr": 20 * RATE},
            ],
            lr=RATE,
        )
        loader = DataLoader(TensorDataset(self.data), batch_size=BATCH, shuffle=True)
        model.train()
        done = 0
        while done < steps:
            for (batch,) in loader:
                mean, log_std = model.posterior(batch)
                codes = mean + log_std.exp() * torch.randn_like(mean)
                kl = (0.5 * ((2 * log_std).exp() + mean.square() - 1) - log_std).sum(1)
                loss = (kl - model.likelihood.log_prob(batch, model.decoder(codes))).mean() / batch[0].numel()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                done += 1
                if done == steps:
                    break
        model.eval()

    @torch.no_grad()
    def held_out_nll(self, model: Any) -> float:
        """Return −ELBO a dimension."""
        energies: dict[str, Tensor] = model.eval().energies(self.held_out)
        return float((energies["reconstruction"] + energies["kl"]).mean()) / self.held_out[0].numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--likelihood-steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    options = parser.parse_args()
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    lines = ["| images | ours | plain | ratio | −ELBO a dimension, ours | plain |", "|---|---|---|---|---|---|"]
    for kind, (name, shape) in KINDS.items():
        pair = Pair(images(name, shape))
        fast, slow = pair.model(0, False), pair.model(0, True)
        found = interleaved(
            lambda pair=pair, fast=fast: pair.ours(fast, options.steps, 0),
            lambda pair=pair, slow=slow: pair.plain(slow, options.steps, 0),
            options.rounds,
        )
        ends: dict[str, list[float]] = {"ours": [], "plain": []}
        for seed in range(3):
            for way, plain in (("ours", False), ("plain", True)):
                model = pair.model(seed, plain)
                getattr(pair, way)(model, options.likelihood_steps, seed)
                ends[way].append(pair.held_out_nll(model))
        count = options.steps * BATCH
        result[kind] = {
            "images_per_second": {
                "ours": count / found["ours_seconds"],
                "plain": count / found["bare_seconds"],
            },
            "times_as_fast": 1 / found["ratio"],
            "held_out_nll": ends,
        }
        told = {way: f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" for way, values in ends.items()}
        rates = result[kind]["images_per_second"]
        lines.append(
            f"| {kind} | {rates['ours']:.0f} a second | {rates['plain']:.0f} a second | "
            f"{result[kind]['times_as_fast']:.2f} × | {told['ours']} | {told['plain']} |"
        )
    options.out.mkdir(exist_ok=True)
    atomic.write(options.out / "vae.json", json.dumps(result, indent=1) + "\n")
    text = "\n".join(lines) + "\n"
    atomic.write(options.out / "vae.md", text)
    print(text)


if __name__ == "__main__":
    main()
