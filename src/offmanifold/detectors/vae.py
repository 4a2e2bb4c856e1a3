"""Variational autoencoders, with the decoder's variance learned, fixed or in closed form."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from offmanifold import parameters
from offmanifold.data.inputs import Float64Array, InputSpec, Rows
from offmanifold.data.tables import Preparation
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.configured import Settings
from offmanifold.detectors.explanations import Cells
from offmanifold.detectors.latent import LatentMixin, joined
from offmanifold.measures.estimates import mean_of
from offmanifold.measures.latents import ACTIVE, averaged_kl
from offmanifold.networks import choose
from offmanifold.probability import bounds
from offmanifold.probability.distances import distance
from offmanifold.probability.divergences import kl_to_standard_normal
from offmanifold.probability.latents import prior_sample, split_posterior
from offmanifold.probability.likelihoods import (
    GAMMAS,
    LOWEST_GAMMA,
    Bernoulli,
    Block,
    Gaussian,
    Likelihood,
    Mixed,
    gaussian_part,
)
from offmanifold.probability.missing import completed, filled, seen
from offmanifold.training.phases import Metrics, ParameterGroup, Phase, Update
from offmanifold.training.progress import Verbosity

SCORES = ("elbo", "reconstruction", "kl", "iwae")
LIKELIHOODS = ("gaussian", "bernoulli")
COLLAPSE = (
    f"No latent carries {ACTIVE} nats about a row: the posterior has collapsed, and the decoder sees no difference "
    "between rows. Try gamma='learned' (a fixed one of the data's size leaves nothing to tell), a smaller beta, more "
    "steps, or a larger learning_rate. Columns that are independent of each other have nothing to share either."
)
# log γ has to travel far (from 1 to 0.001 is 7 nats) while weights move little: it gets a rate of its own.
GAMMA_RATE = 20.0


class VariationalAutoencoder(nn.Module):
    """Encoder q(z | x) = N(mean, std²), decoder p(x | z), prior N(0, I).

    Parameters
    ----------
    encoder, decoder : Module
    likelihood : Gaussian, Bernoulli or Mixed
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
        """Return mean and log standard deviation of q(z | x), ``(n, latent_dim)`` each; a missing cell counts as 0."""
        return split_posterior(self.encoder(filled(rows)))

    def encode(self, rows: Tensor) -> Tensor:
        """Return the posterior means ``(n, latent_dim)``."""
        return self.posterior(rows)[0]

    def reconstruct(self, rows: Tensor) -> Tensor:
        """Return E[x | z] at the posterior mean ``(n, *shape)``; what is missing of x is completed first."""
        return self._once(self.completed(rows))

    def completed(self, rows: Tensor) -> Tensor:
        """Return rows with E[x | z] in missing cells."""
        return completed(rows, self._once)

    def _once(self, rows: Tensor) -> Tensor:
        return self.likelihood.mean(self.decoder(self.encode(rows)))

    def expected_errors(self, rows: Tensor) -> Tensor:
        """Return E_q ‖x − E[x | z]‖²/d ``(n,)`` over the draws that scores use."""
        mean, log_std = self.posterior(self.completed(rows))
        codes = mean + log_std.exp() * self.scoring_noise[:, None]
        means = (self.likelihood.mean(self.decoder(z)) for z in codes)
        if isinstance(self.likelihood, Mixed):  # numbers alone have a variance
            rows, means = rows[:, self.likelihood.numeric], (again[:, self.likelihood.numeric] for again in means)
        return torch.stack([distance(rows, again, "squared") for again in means]).mean(0)

    def energies(self, rows: Tensor, *, decoded: bool = True) -> dict[str, Tensor]:
        """Return −E_q log p(x | z), KL(q ‖ p) and minus the importance-weighted bound, ``(n,)`` each, in nats.

        Without ``decoded`` the KL alone, which needs no decoder.
        """
        mean, log_std = self.posterior(self.completed(rows))
        kl = kl_to_standard_normal(mean, log_std).sum(1)
        if not decoded:
            return {"kl": kl}
        noise = self.scoring_noise[:, None]
        codes = mean + log_std.exp() * noise
        log_likelihoods = torch.stack([self.likelihood.log_prob(rows, self.decoder(z)) for z in codes])
        log_weights = bounds.gaussian_log_weights(log_likelihoods, codes, noise, log_std)
        return {"reconstruction": -log_likelihoods.mean(0), "kl": kl, "iwae": -bounds.iwae(log_weights)}


@final
class VAE(LatentMixin, OutlierDetector):
    """Variational autoencoder: rows that are unlikely under it do not belong.

    Parameters
    ----------
    latent_dim : int or "auto"
        Number of latents. "auto": three quarters of a table's columns, 32 for images, where training prunes the
        superfluous ones (P0 §3.1).
    likelihood : {"gaussian", "bernoulli"}
        Of numbers and pixels. "bernoulli" takes values in [0, 1]. Beside "gaussian" a table's categories are
        categorical and its booleans Bernoulli: the ELBO is in nats over all columns.
    gamma : {"auto", "learned", "per-dimension", "closed-form", "continuation"} or float
        The decoder's variance γ: learned, one or one for each dimension; the running mean squared error, its
        optimum given the networks; the same, but begun at the data's variance and falling by at most 1 % a step (P4
        §4); or a fixed number. "auto": learned for images, 0.1 for tables.
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
        gaussian = gaussian_part(self.module_.likelihood)
        return None if gaussian is None else gaussian.gamma.double().cpu().numpy()

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
        likelihood = self._likelihood(spec, settings)
        return VariationalAutoencoder(encoder, decoder, likelihood, settings["latent_dim"], settings["samples"])

    def _likelihood(self, spec: InputSpec, settings: Settings) -> Likelihood:
        if settings["likelihood"] == "bernoulli":
            return Bernoulli()
        image = spec.kind == "image"
        # Pixels vary by about a tenth, standardised columns by one.
        start = settings.get("gamma_start", 0.1 if image else 1.0)
        preparation = self._standardiser
        if isinstance(preparation, Preparation):
            blocks = [Block(*block) for block in preparation.blocks]
            return Mixed(blocks, preparation.mean.tolist(), preparation.scale.tolist(), settings["gamma"], start=start)
        return Gaussian(spec.shape, settings["gamma"], start=start, sigmoid=image)

    def _settle(self, rows: Tensor, settings: Settings) -> None:
        if settings["likelihood"] == "bernoulli" and ((known := seen(rows)).min() < 0 or known.max() > 1):
            raise ValueError(
                f"likelihood='bernoulli' needs values in [0, 1]; got {known.min():.3g} … {known.max():.3g}"
                + (" after standardisation: set scale=None for columns in [0, 1]." if settings["scale"] else ".")
            )
        if settings["gamma"] == "continuation":
            settings["gamma_start"] = max(float(seen(rows).var(correction=0)), LOWEST_GAMMA)

    def _phases(self, model: VariationalAutoencoder, settings: Settings) -> list[Phase]:
        beta = settings["beta"]

        def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            mean, log_std = model.posterior(rows)
            codes = mean + log_std.exp() * torch.empty_like(mean).normal_(generator=generator)
            log_likelihood = model.likelihood.log_prob(rows, model.decoder(codes))
            kl = kl_to_standard_normal(mean, log_std).sum(1)
            metrics: Metrics = {"log_likelihood": log_likelihood.detach().mean(), "kl": kl.detach().mean()}
            if codes.requires_grad:
                gradients: list[Tensor] = []
                codes.register_hook(gradients.append)  # type: ignore[no-untyped-call]
                size = rows.numel()  # the loop minimises a mean over rows and dimensions; told is a row's, in nats
                metrics["gradient_norm/latent"] = lambda: size * gradients[0].norm(dim=1).mean()
            gaussian = gaussian_part(model.likelihood)
            if gaussian is not None and gaussian.rule != "fixed":
                metrics["gamma"] = gaussian.gamma.mean()
            # Per dimension: the size of a step then means the same for 3 columns and for 784 pixels.
            return -bounds.elbo(log_likelihood, kl, beta) / rows[0].numel(), metrics

        groups = [ParameterGroup.of("encoder", model.encoder), ParameterGroup.of("decoder", model.decoder)]
        if any(parameter.requires_grad for parameter in model.likelihood.parameters()):
            groups.append(ParameterGroup.of("gamma", model.likelihood, rate_scale=GAMMA_RATE))
        update = Update(tuple(groups), loss, self._optimizer(settings))
        return [Phase("vae", (update,), settings["steps"], settings["batch_size"])]

    def _energy_terms(self, model: VariationalAutoencoder, rows: Tensor) -> dict[str, Tensor]:
        score = self.settings_["score_by"]
        energies = model.energies(rows, decoded=score != "kl")
        return {name: energies[name] for name in (("reconstruction", "kl") if score == "elbo" else (score,))}

    def _energy_cells(self, model: VariationalAutoencoder, rows: Tensor) -> Cells | None:
        score = self.settings_["score_by"]
        if score == "iwae":
            return None
        mean, log_std = model.posterior(model.completed(rows))
        latent = kl_to_standard_normal(mean, log_std) if score != "reconstruction" else None
        if score == "kl":
            return Cells(torch.zeros_like(rows), latent)
        codes = mean + log_std.exp() * model.scoring_noise[:, None]
        found = torch.stack([model.likelihood.cells(rows, model.decoder(z)) for z in codes])
        return Cells(-found.mean(0), latent)

    def scores(self, X: Any) -> dict[str, Float64Array]:
        """Return what :meth:`score_samples` would be with each ``score_by``: ``(n,)`` nats by name, high = normal."""

        def energies(model: VariationalAutoencoder, rows: Tensor) -> Tensor:
            found = model.energies(rows)
            return torch.stack([found["reconstruction"] + found["kl"], *found.values()], 1)

        columns = -joined(self._through(energies, self._fitted_rows(X))).T
        return dict(zip(("elbo", "reconstruction", "kl", "iwae"), columns, strict=True))

    # --- the latent space ------------------------------------------------------------------------------

    @property
    def latent_prior(self) -> str:
        """Codes are meant to follow N(0, I)."""
        return "euclidean"

    def posterior(self, X: Any) -> tuple[Float64Array, Float64Array]:
        """Return mean and standard deviation of q(z | x), ``(n, latent_dim)`` each."""
        return self._posterior(self._fitted_rows(X))

    def _posterior(self, rows: Rows, index: npt.NDArray[np.intp] | None = None) -> tuple[Float64Array, Float64Array]:
        def posterior(model: VariationalAutoencoder, part: Tensor) -> Tensor:
            return torch.cat(model.posterior(model.completed(part)), 1)

        both = joined(self._through(posterior, rows, index))
        mean, log_std = np.split(both, 2, axis=1)
        return mean, np.exp(log_std)

    def expected_errors(self, X: Any) -> Float64Array:
        """Return E_q ‖x − μ(z)‖²/d of each row ``(n,)``: their mean is γ's closed-form optimum (P4 Eq. 6)."""
        return self._expected_errors(self._fitted_rows(X))

    def _expected_errors(self, rows: Rows, index: npt.NDArray[np.intp] | None = None) -> Float64Array:
        return joined(self._through(lambda model, part: model.expected_errors(part), rows, index))

    def _fit_report(self, rows: Rows, training: npt.NDArray[np.intp], held_out: npt.NDArray[np.intp]) -> dict[str, Any]:
        report = super()._fit_report(rows, training, held_out)
        kl = averaged_kl(*self._posterior(rows, held_out))
        report["latents"] = {"kl": np.sort(kl)[::-1].tolist(), "active": int((kl > ACTIVE).sum()), "threshold": ACTIVE}
        gaussian = gaussian_part(self.module_.likelihood)
        if gaussian is not None:
            report["gamma"] = {
                "learned": float(gaussian.gamma.mean()),
                "closed_form": mean_of(self._expected_errors(rows, training)).to_json(),
                "at_floor": gaussian.touches_floor,
            }
        return report

    def _warn_about_training(self) -> None:
        """Say so where the posterior has collapsed."""
        if self.fit_report_["latents"]["active"] == 0:
            warnings.warn(COLLAPSE, UserWarning, stacklevel=3)

    def sample(self, n: int, *, random_state: int | np.random.RandomState | None = None) -> Any:
        """Draw ``n`` rows from the model: z from the prior, x from p(x | z), in the user's units and layout."""
        check_is_fitted(self, "module_")
        parameters.integer("n", n)
        generator = self._generator(random_state)
        codes = prior_sample(n, self.settings_["latent_dim"], "euclidean", generator, self._device)
        model: VariationalAutoencoder = self.module_
        with torch.no_grad():
            return self._restore(model.likelihood.sample(model.decoder(codes), generator))
