"""Latent spaces: where codes live, and how they are drawn from the prior."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LATENTS = ("euclidean", "sphere")
# exp(±) stays finite in float32 and far beyond any variance that training reaches.
LOG_STD_RANGE = (-16.0, 8.0)


def project(codes: Tensor, latent: str) -> Tensor:
    """Bring codes ``(n, k)`` into the latent space: unchanged, or onto the unit sphere (P3)."""
    return F.normalize(codes, dim=1) if latent == "sphere" else codes


def prior_sample(n: int, latent_dim: int, latent: str, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw ``(n, latent_dim)`` codes from N(0, I), or uniformly from the unit sphere."""
    return project(torch.randn(n, latent_dim, generator=generator, device=device), latent)


def split_posterior(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Split the encoder's output ``(n, 2k)`` into mean and log standard deviation, ``(n, k)`` each."""
    mean, log_std = encoded.chunk(2, dim=1)
    return mean, log_std.clamp(*LOG_STD_RANGE)
