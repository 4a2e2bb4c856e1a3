"""Variational autoencoders, with the decoder's variance learned, fixed or in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from offmanifold import parameters
from offmanifold.data.inputs import Float64Array, InputSpec
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.configured import Settings
from offmanifold.detectors.latent import LatentMixin
from offmanifold.networks import choose
from offmanifold.probability import bounds
from offmanifold.probability.divergences import kl_to_standard_normal
from offmanifold.probability.latents import prior_sample, split_posterior
from offmanifold.probability.likelihoods import GAMMAS, Bernoulli, Gaussian, Likelihood
from offmanifold.training.phases import ParameterGroup, Phase, Update
from offmanifold.training.progress import Verbosity

SCORES = ("elbo", "reconstruction", "kl", "iwae")
LIKELIHOODS = ("gaussian", "bernoulli")
# log γ has to travel far (from 1 to 0.001 is 7 nats) while weights move little: it gets a rate of its own.
GAMMA_RATE = 20.0


class VariationalAutoencoder(nn.Module):
    """Encoder q(z | x) = N(mean, std²), decoder p(x | z), prior N(0, I).

    Parameters
    ----------
    encoder, decoder : Module
    likelihood : Gaussian or Bernoulli
    latent_dim : int
    samples : int
        Draws of z that a score averages over.
    """

    scoring_noise: Tensor

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood, latent_dim: int, samples: int
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        # Common random numbers: every row is scored with the same draws, so a score is a function of the row.
        noise = torch.randn(samples, latent_dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("scoring_noise", noise)

    def posterior(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of q(z | x), ``(n, latent_dim)`` each."""
        return split_posterior(self.encoder(rows))

    def encode(self, rows: Tensor) -> Tensor:
        """Return the posterior means ``(n, latent_dim)``."""
        return self.posterior(rows)[0]

    def reconstruct(self, rows: Tensor) -> Tensor:
        """Return E[x | z] at the posterior mean ``(n, *shape)``."""
        return self.likelihood.mean(self.decoder(self.encode(rows)))

    def log_likelihoods(self, rows: Tensor, codes: Tensor) -> Tensor:
        """Return log p(x | z) ``(samples, n)`` for codes ``(samples, n, latent_dim)``."""
        return torch.stack([self.likelihood.log_prob(rows, self.decoder(z)) for z in codes])


@final
class VAE(LatentMixin, OutlierDetector):
    """Variational autoencoder: rows that are unlikely under it do not belong.

    Parameters
    ----------
    latent_dim : int or "auto"
        Number of latents. "auto": three quarters of a table's columns, 32 for images, where training prunes the
        superfluous ones (P0 §3.1).
    likelihood : {"gaussian", "bernoulli"}
        "bernoulli" takes values in [0, 1].
    gamma : {"auto", "learned", "per-dimension", "closed-form"} or float
        The decoder's variance γ: learned, one or one for each dimension; the running mean squared error, its
        optimum given the networks; or a fixed number. "auto": learned for images, 0.1 for tables.
    beta : float
        Weight of the KL term in training.
    score_by : {"elbo", "reconstruction", "kl", "iwae"}
        All in nats, high = normal: E_q log p(x|z) − KL; its first term; minus the KL; the
        importance-weighted bound. (Not ``score``, which is a method of scikit-learn's estimators.)
    samples : int
        Draws of z that a score averages over, the same for every row.
    network : str
        As for :class:`AE`, but "auto" is "mlp" for tables.
    steps : int or "auto"
        As for :class:`AE`, but "auto" is 500 for tables.
    learning_rate : float or "auto"
        As for :class:`AE`, but "auto" is 5e-3 for tables.
    hidden, capacity, epochs, batch_size, optimizer, schedule, weight_decay
        As for :class:`AE`.
    scale, false_alarm_rate, calibration_fraction, device, precision, random_state, verbose
        As for :class:`AE`.

    Attributes
    ----------
    gamma_ : ndarray or None
        The decoder's variance after training: a scalar, or of a row's shape.

    Examples
    --------
    >>> import numpy as np
    >>> from offmanifold import VAE
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 1)) * [[1.0, 2.0, -1.0]] + 0.1 * rng.normal(size=(500, 3))
    >>> detector = VAE(random_state=0, verbose=False).fit(X)
    >>> detector.predict([[1.0, 2.0, -1.0], [1.0, -2.0, 1.0]]).tolist()
    [1, -1]
    """

    key = "vae"

    def __init__(
        self,
        *,
        latent_dim: int | str = "auto",
        likelihood: str = "gaussian",
        gamma: str | float = "auto",
        beta: float = 1.0,
        score_by: str = "elbo",
        samples: int = 8,
        network: str = "auto",
        hidden: str | int | Sequence[int] = "auto",
        capacity: float = 1.0,
        steps: int | str = "auto",
        epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float | str = "auto",
        optimizer: str = "adamw",
        schedule: str = "one-cycle",
        weight_decay: float = 0.0,
        scale: str | None = "standard",
        false_alarm_rate: float = 0.05,
        calibration_fraction: float | None = None,
        device: str = "auto",
        precision: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: Verbosity = "auto",
    ) -> None:
        super().__init__(
            network=network,
            hidden=hidden,
            capacity=capacity,
            steps=steps,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            schedule=schedule,
            weight_decay=weight_decay,
            scale=scale,
            false_alarm_rate=false_alarm_rate,
            calibration_fraction=calibration_fraction,
            device=device,
            precision=precision,
            random_state=random_state,
            verbose=verbose,
        )
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.gamma = gamma
        self.beta = beta
        self.score_by = score_by
        self.samples = samples

    @property
    def score_unit(self) -> str:
        """Nats, whichever score."""
        return "nats"

    @property
    def gamma_(self) -> Float64Array | None:
        """The decoder's variance after training; None for a Bernoulli likelihood."""
        likelihood = self.module_.likelihood
        return likelihood.gamma.double().cpu().numpy() if isinstance(likelihood, Gaussian) else None

    def _settings(self, spec: InputSpec) -> Settings:
        table = spec.kind == "table"
        parameters.choice("likelihood", self.likelihood, LIKELIHOODS)
        if isinstance(self.gamma, str):
            gamma: str | float = parameters.choice("gamma", self.gamma, ("auto", *GAMMAS))
            if gamma == "auto":
                gamma = 0.1 if table else "learned"
        else:
            gamma = parameters.real("gamma", self.gamma, above=0)
        parameters.choice("score_by", self.score_by, SCORES)
        if self.latent_dim == "auto":
            latent_dim = max(2, math.ceil(0.75 * spec.dimensions)) if table else 32
        else:
            latent_dim = parameters.integer("latent_dim", self.latent_dim)
        return {
            "latent_dim": latent_dim,
            "likelihood": self.likelihood,
            "gamma": gamma,
            "beta": parameters.real("beta", self.beta, minimum=0),
            "score_by": self.score_by,
            "samples": parameters.integer("samples", self.samples),
            **self._network_settings(spec, for_tables="mlp", table_steps=500, table_rate=5e-3),
        }

    def _build(self, spec: InputSpec, settings: Settings) -> VariationalAutoencoder:
        encoder, decoder = choose.build(
            settings["network"],
            spec.shape,
            into_latent=2 * settings["latent_dim"],
            latent_dim=settings["latent_dim"],
            hidden=settings["hidden"],
            capacity=settings["capacity"],
        )
        image = spec.kind == "image"
        likelihood: Likelihood = (
            Bernoulli()
            if settings["likelihood"] == "bernoulli"
            # Pixels vary by about a tenth, standardised columns by one.
            else Gaussian(spec.shape, settings["gamma"], start=0.1 if image else 1.0, sigmoid=image)
        )
        return VariationalAutoencoder(encoder, decoder, likelihood, settings["latent_dim"], settings["samples"])

    def _settle(self, rows: Tensor, settings: Settings) -> None:
        if settings["likelihood"] == "bernoulli" and (rows.min() < 0 or rows.max() > 1):
            raise ValueError(
                f"likelihood='bernoulli' needs values in [0, 1]; got {rows.min():.3g} … {rows.max():.3g}"
                + (" after standardisation: set scale=None for columns in [0, 1]." if settings["scale"] else ".")
            )

    def _phases(self, model: VariationalAutoencoder, settings: Settings) -> list[Phase]:
        beta = settings["beta"]

        def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            mean, log_std = model.posterior(rows)
            noise = torch.empty_like(mean).normal_(generator=generator)
            log_likelihood = model.likelihood.log_prob(rows, model.decoder(mean + log_std.exp() * noise))
            kl = kl_to_standard_normal(mean, log_std).sum(1)
            metrics = {"log_likelihood": log_likelihood.detach().mean(), "kl": kl.detach().mean()}
            if isinstance(model.likelihood, Gaussian) and model.likelihood.rule != "fixed":
                metrics["gamma"] = model.likelihood.gamma.mean()
            # Per dimension: the size of a step then means the same for 3 columns and for 784 pixels.
            return -bounds.elbo(log_likelihood, kl, beta) / rows[0].numel(), metrics

        groups = [ParameterGroup.of("encoder", model.encoder), ParameterGroup.of("decoder", model.decoder)]
        if any(parameter.requires_grad for parameter in model.likelihood.parameters()):
            groups.append(ParameterGroup.of("gamma", model.likelihood, rate_scale=GAMMA_RATE))
        update = Update(tuple(groups), loss, self._optimizer(settings))
        return [Phase("vae", (update,), settings["steps"], settings["batch_size"])]

    def _energy_terms(self, model: VariationalAutoencoder, rows: Tensor) -> dict[str, Tensor]:
        score = self.settings_["score_by"]
        mean, log_std = model.posterior(rows)
        if score == "kl":
            return {"kl": kl_to_standard_normal(mean, log_std).sum(1)}
        noise = model.scoring_noise[:, None]
        codes = mean + log_std.exp() * noise
        log_likelihoods = model.log_likelihoods(rows, codes)
        if score == "iwae":
            return {"iwae": -bounds.iwae(bounds.gaussian_log_weights(log_likelihoods, codes, noise, log_std))}
        terms = {"reconstruction": -log_likelihoods.mean(0)}
        if score == "elbo":
            terms["kl"] = kl_to_standard_normal(mean, log_std).sum(1)
        return terms

    def sample(self, n: int, *, random_state: int | np.random.RandomState | None = None) -> Float64Array:
        """Draw ``n`` rows from the model: z from the prior, x from p(x | z), in the user's units and layout."""
        check_is_fitted(self, "module_")
        parameters.integer("n", n)
        generator = self._generator(random_state)
        codes = prior_sample(n, self.settings_["latent_dim"], "euclidean", generator, self._device)
        model: VariationalAutoencoder = self.module_
        with torch.no_grad():
            return self._restore(model.likelihood.sample(model.decoder(codes), generator))
