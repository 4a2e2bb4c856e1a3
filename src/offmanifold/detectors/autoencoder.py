"""The autoencoder module that several detectors are built on, and the noise that it learns to undo."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from offmanifold import parameters
from offmanifold.probability.distances import DISTANCES
from offmanifold.probability.latents import LATENTS, project
from offmanifold.probability.missing import completed, filled

# Standard deviations of the noise to undo, the least and the largest: what "auto" is for tables (docs/defaults.md), and
# none.
WIDE, NONE = (0.05, 3.0), (0.0, 0.0)
# What a score is minus the mean over dimensions of, by distance.
SCORE_UNITS = {"squared": "mean squared error", "l1": "mean absolute error", "ssim": "1 − SSIM"}


def unit_of(detector: Any) -> str:
    """Return what a detector's score is minus the mean of: by the distance it was fitted with, if it was."""
    chosen = detector.settings_["distance"] if hasattr(detector, "settings_") else detector.distance
    return SCORE_UNITS[parameters.choice("distance", chosen, SCORE_UNITS)]


class Autoencoder(nn.Module):
    """x ↦ dec(enc(x)).

    Parameters
    ----------
    encoder, decoder : Module
    latent : {"euclidean", "sphere"}
    sigmoid : bool
        Whether the decoder's output goes through a sigmoid (images).
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, latent: str, sigmoid: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.latent, self.sigmoid = latent, sigmoid

    def encode(self, rows: Tensor) -> Tensor:
        """Return codes ``(n, latent_dim)``; a missing cell counts as its column's mean."""
        return project(self.encoder(filled(rows)), self.latent)

    def decode(self, codes: Tensor) -> Tensor:
        """Return rows ``(n, *shape)``."""
        decoded: Tensor = self.decoder(codes)
        return torch.sigmoid(decoded) if self.sigmoid else decoded

    def reconstruct(self, rows: Tensor) -> Tensor:
        """Return dec(enc(x)) ``(n, *shape)``; what is missing of x is completed first."""
        return self._once(self.completed(rows))

    def completed(self, rows: Tensor) -> Tensor:
        """Return rows with what dec(enc(x)) has in missing cells."""
        return completed(rows, self._once)

    def _once(self, rows: Tensor) -> Tensor:
        return self.decode(self.encode(rows))


def check_autoencoder(distance: str, latent: str, latent_dim: int, *, table: bool) -> None:
    """Refuse distances and latent spaces that are unknown, or make no sense for the data."""
    parameters.choice("distance", distance, DISTANCES)
    if distance == "ssim" and table:
        raise parameters.InvalidParameter(
            "distance='ssim' compares images; the data are a table. Use 'squared' or 'l1'."
        )
    parameters.choice("latent", latent, LATENTS)
    if latent == "sphere" and latent_dim == 1:
        raise parameters.InvalidParameter(
            "latent_dim=1 on the sphere leaves two points; use at least 2, or latent='euclidean'."
        )


def noise_range(noise: float | Sequence[float] | str, auto: tuple[float, float]) -> list[float]:
    """Check a standard deviation, a range of them, or "auto"; return the range."""
    if isinstance(noise, str) and noise == "auto":
        return list(auto)
    if not isinstance(noise, Iterable):
        return [parameters.real("noise", noise, minimum=0)] * 2
    values = [] if isinstance(noise, str) else list(noise)
    if len(values) != 2:
        raise parameters.InvalidParameter(f"noise must be a number, a range (low, high) or 'auto'; got {noise!r}.")
    low, high = (parameters.real(f"noise[{i}]", value, above=0) for i, value in enumerate(values))
    if low > high:
        raise parameters.InvalidParameter(f"noise must be a range (low, high) with low ≤ high; got {noise!r}.")
    return [low, high]


def noised(rows: Tensor, noise: Sequence[float], generator: torch.Generator) -> Tensor:
    """Return rows with Gaussian noise, each row's of a standard deviation drawn from the range, uniform in its log."""
    low, high = noise
    if not high:
        return rows
    drawn = torch.empty_like(rows).normal_(generator=generator)
    levels = drawn.new_empty(len(rows), *[1] * (rows.ndim - 1))
    levels.uniform_(math.log(low), math.log(high), generator=generator).exp_()
    return torch.addcmul(rows, drawn, levels)
