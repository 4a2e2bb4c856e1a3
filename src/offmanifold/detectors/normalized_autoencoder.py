"""The normalised autoencoder's module, an energy and its temperature, and the chains on it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from offmanifold.detectors.autoencoder import Autoencoder
from offmanifold.detectors.chains import AnyStart, Chain, from_data_or_replay
from offmanifold.detectors.configured import Settings
from offmanifold.probability.distances import distance
from offmanifold.probability.latents import prior_sample
from offmanifold.sampling import langevin, metropolis
from offmanifold.sampling.chain import Kernel, Space
from offmanifold.sampling.replay import Replay
from offmanifold.sampling.starts import OnManifold, Start


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


def training_chain(model: NormalizedAutoencoder, settings: Settings, shape: tuple[int, ...]) -> Chain[Start]:
    """Return the chain that training draws from, for rows of ``shape``: its start is as ``negatives`` says."""
    device = model.log_temperature.device
    if settings["negatives"] != "omi":
        return visible_chain(model, settings, from_data_or_replay(settings, shape, device))
    size = settings["replay_size"]
    replay = Replay(size, (settings["latent_dim"],), device) if size else None
    start: Start = on_manifold(model, settings, replay, settings["restart"])
    return visible_chain(model, settings, start)


def visible_chain(model: NormalizedAutoencoder, settings: Settings, start: AnyStart) -> Chain[AnyStart]:
    """Return the chain on x."""
    steps, step_size, noise = settings["visible_chain"]
    (low, high), adjusted = settings["bounds"], settings["adjusted"]
    space = Space(low, high, "reject" if adjusted else "clamp")
    kernel = Kernel(step_size, noise, model.temperature, settings["anneal"], settings["clip"], space)
    return Chain(start, metropolis.step if adjusted else langevin.step, kernel, steps)


def on_manifold(model: NormalizedAutoencoder, settings: Settings, replay: Replay | None, restart: float) -> OnManifold:
    """Return the start on the decoder's manifold, with its chain on z."""
    steps, step_size, noise = settings["latent_chain"]
    latent_dim, latent = settings["latent_dim"], settings["latent"]
    kernel = Kernel(step_size, noise, model.temperature, space=Space(sphere=latent == "sphere"))
    device = model.log_temperature.device

    def prior(generator: torch.Generator, n: int) -> Tensor:
        return prior_sample(n, latent_dim, latent, generator, device)

    return OnManifold(model.decode, model.energy, kernel, steps, prior, replay, restart)
