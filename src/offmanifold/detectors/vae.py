"""Variational autoencoders, with the decoder's variance learned, fixed or in closed form."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from offmanifold import parameters
from offmanifold.data.inputs import InputSpec
from offmanifold.detectors.configured import Settings
from offmanifold.detectors.training_bounds import MOST_REPEATS, bound_settings, settled
from offmanifold.detectors.variational import VariationalDetector, gamma_metric, generative_groups
from offmanifold.detectors.variational_autoencoder import VariationalAutoencoder
from offmanifold.probability import bounds
from offmanifold.training.phases import Metrics, Phase, Update
from offmanifold.training.progress import Verbosity


@final
class VAE(VariationalDetector):
    """Variational autoencoder: rows that are unlikely under it do not belong.

    Parameters
    ----------
    latent_dim : int or "auto"
        Number of latents. "auto": three quarters of a table's columns, 32 for images, where training prunes the
        superfluous ones (P0 §3.1).
    likelihood : {"gaussian", "unit-gaussian", "bernoulli"}
        Of numbers and pixels. "unit-gaussian" has γ = 1, P1's; "bernoulli" takes values in [0, 1]. Beside a Gaussian a
        table's categories are categorical and its booleans Bernoulli: the ELBO is in nats over all columns.
    gamma : {"auto", "learned", "per-dimension", "closed-form", "continuation"} or float
        The decoder's variance γ: learned, one or one for each dimension; the running mean squared error, its
        optimum given the networks; the same, but begun at the data's variance and falling by at most 1 % a step (P4
        §4); or a fixed number. "auto": learned for images, 0.1 for tables.
    beta : float
        Weight of the KL term in training with the ELBO.
    bound : {"elbo", "iwae"}
        What training raises: the evidence lower bound, or the importance-weighted one (Burda et al., 2016), which lets
        posteriors be other than Gaussian (P2).
    training_samples : int or "auto"
        Draws of z a row and step. "auto": 1 for the ELBO, 10 for the importance-weighted bound.
    lagging : (float, int), optional
        (T, R): before each step of both networks the encoder alone is trained on fresh batches until the mean loss of R
        of them, in nats a row, is less than T below that of the R before (lagging inference, P2 appendix J; He et al.,
        2019). At least 2 R times the work, and at most 100 times: R is at most 50.
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
    scale, false_alarm_rate, calibration_fraction, store_rows, device, precision, random_state, verbose
        As for :class:`AE`.

    Attributes
    ----------
    gamma_ : ndarray or None
        The decoder's variance after training: a scalar, or of a row's shape. Its course is in ``history_``, and so is
        ``gradient_norm/latent``: the mean over rows of ‖∂L/∂z‖ with L in nats a row (P4 Fig. 4b).

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
    gaps = "learned"

    def __init__(
        self,
        *,
        latent_dim: int | str = "auto",
        likelihood: str = "gaussian",
        gamma: str | float = "auto",
        beta: float = 1.0,
        bound: str = "elbo",
        training_samples: int | str = "auto",
        lagging: Sequence[float] | None = None,
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
        store_rows: bool = True,
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
            store_rows=store_rows,
            device=device,
            precision=precision,
            random_state=random_state,
            verbose=verbose,
        )
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.gamma = gamma
        self.beta = beta
        self.bound = bound
        self.training_samples = training_samples
        self.lagging = lagging
        self.score_by = score_by
        self.samples = samples

    def _settings(self, spec: InputSpec) -> Settings:
        beta = parameters.real("beta", self.beta, minimum=0)
        if self.bound == "iwae" and beta != 1:
            raise parameters.InvalidParameter(
                f"bound='iwae' has no KL term for beta={beta:g} to weigh. Use beta=1, or bound='elbo'."
            )
        return {
            **self._variational_settings(spec),
            "beta": beta,
            **bound_settings(self.bound, self.training_samples, self.lagging),
            **self._network_settings(spec, for_tables="mlp", table_steps=500, table_rate=5e-3),
        }

    def _phases(self, model: VariationalAutoencoder, settings: Settings) -> list[Phase]:
        beta, samples, latent_dim = settings["beta"], settings["training_samples"], settings["latent_dim"]

        def loss(rows: Tensor, generator: torch.Generator, *, learning: bool = True) -> tuple[Tensor, Metrics]:
            noise = rows.new_empty(samples, len(rows), latent_dim).normal_(generator=generator)
            draws = model.draws(rows, noise, learning=learning)
            kl = draws.kl
            if settings["bound"] == "elbo":
                bound = bounds.elbo(draws.log_likelihoods, kl, beta)
            else:
                bound = bounds.iwae(draws.log_weights)
            metrics: Metrics = {"log_likelihood": draws.log_likelihoods.detach().mean(), "kl": kl.detach().mean()}
            if draws.codes.requires_grad:
                gradients: list[Tensor] = []
                draws.codes.register_hook(gradients.append)  # type: ignore[no-untyped-call]
                size = rows.numel()  # the loop minimises a mean over rows and dimensions; told is a row's, in nats
                metrics["gradient_norm/latent"] = lambda: size * gradients[0].sum(0).norm(dim=1).mean()
            metrics |= gamma_metric(model.likelihood)
            # Per dimension: the size of a step then means the same for 3 columns and for 784 pixels.
            return -bound / rows[0].numel(), metrics

        groups = generative_groups(model.encoder, model.decoder, model.likelihood)
        optimizer = self._optimizer(settings)
        updates = [Update(tuple(groups), loss, optimizer)]
        if settings["lagging"] is not None:
            threshold, repeats = settings["lagging"]
            enough = settled(threshold, repeats, self._network_spec.dimensions)
            alone = functools.partial(loss, learning=False)
            updates.insert(0, Update((groups[0],), alone, optimizer, repeats=MOST_REPEATS, repeat_until=enough))
        return [Phase("vae", tuple(updates), settings["steps"], settings["batch_size"])]
