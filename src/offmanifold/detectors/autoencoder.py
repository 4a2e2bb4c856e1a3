"""The autoencoder module that several detectors are built on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from offmanifold.probability.latents import project
from offmanifold.probability.missing import completed, filled


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

        def once(rows: Tensor) -> Tensor:
            return self.decode(self.encode(rows))

        return once(completed(rows, once))
