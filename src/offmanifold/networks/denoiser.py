"""A noise-conditional denoiser with the preconditioning of Karras et al. (2022, Table 1), for data of unit variance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from offmanifold.probability.missing import filled, missing_cells, share_seen, without

FREQUENCIES = 8


class Denoiser(nn.Module):
    """D(y, σ): what y = x + σε most likely was, E[x | y].

    D = y/(1 + σ²) + σ/√(1 + σ²) · F(y/√(1 + σ²), σ), with F a residual network.

    Parameters
    ----------
    dimensions : int
    hidden : sequence of int
        One block for each entry, all of one width.
    dropout : float
        Of the blocks' inner activations, in training; drawn from the generator that is given then.
    """

    frequencies: Tensor

    def __init__(self, dimensions: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        width = hidden[0]
        self.dropout = dropout
        self.enter = nn.Linear(dimensions, width)
        self.level = nn.Linear(2 * FREQUENCIES, width)
        self.leave = nn.Linear(width, dimensions)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in hidden)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in hidden)
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in hidden)
        frequencies = torch.exp(torch.linspace(math.log(0.25), math.log(4.0), FREQUENCIES))
        self.register_buffer("frequencies", frequencies)

    def network(self, noisy: Tensor, sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return F ``(n, d)`` for rows ``(n, d)`` and levels ``(n, 1)``; with a generator, with dropout."""
        angles = sigma.log() * self.frequencies
        inner = self.enter(noisy / (1 + sigma**2).sqrt()) + self.level(torch.cat([angles.sin(), angles.cos()], 1))
        for norm, first, second in zip(self.norms, self.first, self.second, strict=True):
            active = nn.functional.silu(first(norm(inner)))
            if generator is not None and self.dropout:
                kept = torch.empty_like(active).bernoulli_(1 - self.dropout, generator=generator)
                active = active * kept / (1 - self.dropout)
            inner = inner + second(active)
        found: Tensor = self.leave(inner)
        return found

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Return D(y, σ) ``(n, d)``."""
        scale = 1 + sigma**2
        return noisy / scale + sigma / scale.sqrt() * self.network(noisy, sigma)

    def loss(self, rows: Tensor, noise: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return (1 + σ²)/σ² · ‖D(x + σε, σ) − x‖²/d of each row ``(n,)``: 1 for a network that gives nothing.

        The mean is over the cells seen; in the others the network is given noise about the mean.
        """
        known = filled(rows)
        scale = 1 + sigma**2
        noisy = known + sigma * noise
        target = (known - noisy / scale) * scale.sqrt() / sigma
        errors = without(missing_cells(rows), (self.network(noisy, sigma, generator) - target).square())
        return errors.mean(1) / share_seen(rows)
