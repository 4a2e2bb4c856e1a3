"""The normalised autoencoder's module: an energy and its temperature."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from offmanifold.detectors.autoencoder import Autoencoder
from offmanifold.probability.distances import distance


class NormalizedAutoencoder(Autoencoder):
    """An autoencoder with a temperature: log p(x) = −E(x)/T − log Ω, E = mean error (P3, Eqs. 4, 5, 9).

    Parameters
    ----------
    encoder, decoder : Module
    latent : {"euclidean", "sphere"}
    sigmoid : bool
    kind : str
        The distance.
    temperature : float or "learned"
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent: str,
        sigmoid: bool,
        kind: str,
        temperature: float | str,
    ) -> None:
        super().__init__(encoder, decoder, latent=latent, sigmoid=sigmoid)
        self.kind = kind
        learned = isinstance(temperature, str)
        start = math.log(0.5) if isinstance(temperature, str) else math.log(temperature)
        self.log_temperature = nn.Parameter(torch.tensor(start), requires_grad=learned)

    def energy(self, rows: Tensor) -> Tensor:
        """Return E(x): ``(n,)``."""
        return distance(rows, self.reconstruct(rows), self.kind)

    def temperature(self) -> Tensor:
        """Return T."""
        temperature: Tensor = self.log_temperature.exp()
        return temperature
