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
from offmanifold.sampling.starts import Fresh, OnManifold, Start


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
    kept_codes : (int, int), optional
        The shape of those codes of training rows that are there to be loaded: where chains on z start at codes of data,
        those of samples start at these.
    """

    codes: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent: str,
        sigmoid: bool,
        kind: str,
        temperature: float | str,
        kept_codes: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(encoder, decoder, latent=latent, sigmoid=sigmoid)
        self.kind = kind
        learned = isinstance(temperature, str)
        start = math.log(0.5) if isinstance(temperature, str) else math.log(temperature)
        self.log_temperature = nn.Parameter(torch.tensor(start), requires_grad=learned)
        self.register_buffer("codes", None if kept_codes is None else torch.zeros(kept_codes))

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
    at_codes = settings["starts_at_codes"]
    fresh = (lambda generator, rows: model.encode(rows)) if at_codes else without_data(model, settings)
    start: Start = on_manifold(model, settings, fresh, replay)
    return visible_chain(model, settings, start)


def visible_chain(model: NormalizedAutoencoder, settings: Settings, start: AnyStart) -> Chain[AnyStart]:
    """Return the chain on x."""
    steps, step_size, noise = settings["visible_chain"]
    (low, high), adjusted = settings["bounds"], settings["adjusted"]
    space = Space(low, high, "reject" if adjusted else "clamp")
    kernel = Kernel(step_size, noise, model.temperature, settings["anneal"], settings["clip"], space)
    return Chain(start, metropolis.step if adjusted else langevin.step, kernel, steps, model)


def on_manifold(
    model: NormalizedAutoencoder, settings: Settings, fresh: Fresh, replay: Replay | None = None
) -> OnManifold:
    """Return the start on the decoder's manifold, with its chain on z; without a buffer all are fresh."""
    steps, step_size, noise = settings["latent_chain"]
    kernel = Kernel(step_size, noise, model.temperature, space=Space(sphere=settings["latent"] == "sphere"))
    return OnManifold(model.decode, model.energy, kernel, steps, fresh, replay, settings["restart"])


def without_data(model: NormalizedAutoencoder, settings: Settings) -> Fresh:
    """Return what draws codes when no data are at hand: from those that were kept or, if none were, the prior."""
    device = model.log_temperature.device

    def fresh(generator: torch.Generator, rows: Tensor) -> Tensor:
        if model.codes is None:
            return prior_sample(len(rows), settings["latent_dim"], settings["latent"], generator, device)
        return model.codes[torch.randint(len(model.codes), (len(rows),), generator=generator, device=device)]

    return fresh
