"""What variational detectors share: settings, scores, importance sampling, their latent space."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from offmanifold import parameters
from offmanifold.data.inputs import Float64Array, InputSpec, Rows, evenly
from offmanifold.data.tables import Preparation
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.configured import Settings, latent_size
from offmanifold.detectors.explanations import Cells
from offmanifold.detectors.latent import LatentMixin
from offmanifold.detectors.scorer import joined
from offmanifold.detectors.variational_autoencoder import Draws, VariationalAutoencoder
from offmanifold.measures.estimates import mean_of
from offmanifold.measures.latents import ACTIVE, averaged_kl
from offmanifold.networks import choose
from offmanifold.probability import bounds
from offmanifold.probability.latents import prior_sample
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
from offmanifold.probability.missing import cells_seen, seen
from offmanifold.training.phases import Metrics, ParameterGroup
from offmanifold.training.precision import computing_in, ordinary

SCORES = ("elbo", "reconstruction", "kl", "iwae")
LIKELIHOODS = ("gaussian", "unit-gaussian", "bernoulli")
COLLAPSE = (
    f"No latent carries {ACTIVE} nats about a row: the posterior has collapsed, and the decoder sees no difference "
    "between rows. Try gamma='learned' (a fixed one of the data's size leaves nothing to tell), a smaller beta, more "
    "steps, or a larger learning_rate. Columns that are independent of each other have nothing to share either."
)
# log γ has to travel far (from 1 to 0.001 is 7 nats) while weights move little: it gets a rate of its own.
GAMMA_RATE = 20.0
# Of the many draws that importance sampling takes, so many are decoded at a time.
DRAWN_AT_ONCE = 64


def gamma_metric(likelihood: Likelihood) -> Metrics:
    """Return γ's mean for the history, where it is not fixed."""
    gaussian = gaussian_part(likelihood)
    return {} if gaussian is None or gaussian.rule == "fixed" else {"gamma": gaussian.gamma.mean()}


def generative_groups(encoder: nn.Module, decoder: nn.Module, likelihood: nn.Module) -> list[ParameterGroup]:
    """Return the parameters of encoder, decoder and, where it is learned, γ."""
    groups = [ParameterGroup.of("encoder", encoder), ParameterGroup.of("decoder", decoder)]
    if any(parameter.requires_grad for parameter in likelihood.parameters()):
        groups.append(ParameterGroup.of("gamma", likelihood, GAMMA_RATE, decays=False))
    return groups


class VariationalDetector(LatentMixin, OutlierDetector):
    """Base of the detectors whose module is a :class:`VariationalAutoencoder`.

    A concrete one stores ``latent_dim``, ``likelihood``, ``gamma``, ``score_by`` and ``samples``, and writes
    ``_settings`` and ``_phases``.
    """

    latent_dim: int | str
    likelihood: str
    gamma: str | float
    score_by: str
    samples: int

    @property
    def score_unit(self) -> str:
        """Nats, whichever score."""
        return "nats"

    @property
    def gamma_(self) -> Float64Array | None:
        """The decoder's variance after training; None for a Bernoulli likelihood."""
        gaussian = gaussian_part(self.module_.likelihood)
        return None if gaussian is None else gaussian.gamma.double().cpu().numpy()

    def _variational_settings(self, spec: InputSpec, *, image_latents: int = 32) -> Settings:
        """Check what all of these detectors have, and resolve every "auto"."""
        parameters.choice("likelihood", self.likelihood, LIKELIHOODS)
        parameters.choice("score_by", self.score_by, SCORES)
        return {
            "latent_dim": latent_size(self.latent_dim, spec, for_images=image_latents),
            "likelihood": self.likelihood,
            "gamma": self._gamma(spec.kind == "table"),
            "score_by": self.score_by,
            "samples": parameters.integer("samples", self.samples),
        }

    def _gamma(self, table: bool) -> str | float:
        gamma: str | float
        if not isinstance(self.gamma, str):
            gamma = parameters.real("gamma", self.gamma, above=0)
        else:
            name = parameters.choice("gamma", self.gamma, ("auto", *GAMMAS))
            if name != "auto":
                gamma = name
            elif self.likelihood == "unit-gaussian":
                gamma = 1.0
            else:
                gamma = 0.1 if table else "learned"
        if self.likelihood == "unit-gaussian" and gamma != 1.0:
            raise parameters.InvalidParameter(
                f"likelihood='unit-gaussian' has γ = 1; got gamma={self.gamma!r}. Use 'gaussian'."
            )
        return gamma

    def _build(self, spec: InputSpec, settings: Settings) -> VariationalAutoencoder:
        encoder, decoder = choose.build(
            settings["network"],
            spec.shape,
            into_latent=2 * settings["latent_dim"],
            latent_dim=settings["latent_dim"],
            hidden=settings["hidden"],
            capacity=settings["capacity"],
        )
        return VariationalAutoencoder(
            encoder, decoder, self._likelihood(spec, settings), settings["latent_dim"], settings["samples"]
        )

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
            numbers = rows
            if isinstance(self._standardiser, Preparation):  # γ is theirs alone
                kinds = [kind for kind, width, _ in self._standardiser.blocks for _ in range(width)]
                numbers = rows[:, [i for i, kind in enumerate(kinds) if kind == "number"]]
            known = seen(numbers)
            settings["gamma_start"] = max(LOWEST_GAMMA, float(known.var(correction=0)) if known.numel() else 0.0)

    def _energy_terms(self, model: VariationalAutoencoder, rows: Tensor) -> dict[str, Tensor]:
        score = self.settings_["score_by"]
        energies = model.energies(rows, decoded=score != "kl")
        return {name: energies[name] for name in (("reconstruction", "kl") if score == "elbo" else (score,))}

    def _energy_cells(self, model: VariationalAutoencoder, rows: Tensor) -> Cells | None:
        score = self.settings_["score_by"]
        if score == "iwae":
            return None
        latent = model.latent_terms(rows) if score != "reconstruction" else None
        return Cells(torch.zeros_like(rows) if score == "kl" else -model.expected_cells(rows), latent)

    def scores(self, X: Any) -> dict[str, Float64Array]:
        """Return what :meth:`score_samples` would be with each ``score_by``: ``(n,)`` nats by name, high = normal.

        But for rows with missing cells, which only :meth:`score_samples` makes comparable to complete ones.
        """

        def energies(model: VariationalAutoencoder, rows: Tensor) -> Tensor:
            found = model.energies(rows)
            return torch.stack([found["reconstruction"] + found["kl"], *found.values()], 1)

        with computing_in(self._scoring_dtype, self.module_):
            columns = -joined(self._through(energies, self._fitted_rows(X))).T
        return dict(zip(("elbo", "reconstruction", "kl", "iwae"), columns, strict=True))

    def log_likelihood(
        self, X: Any, *, samples: int = 1000, random_state: int | np.random.RandomState | None = 0
    ) -> Float64Array:
        """Estimate log p(x) of each row by importance sampling from q(z | x): ``(n,)`` nats.

        A lower bound in expectation (IWAE's, Burda et al., 2016), which rises towards log p(x) with ``samples``. For
        tables it is the density of standardised columns. All rows share their draws, whose error does not average out
        over rows: an interval of the mean over rows is of the rows alone, and another ``random_state`` shows the rest.
        """
        parameters.integer("samples", samples)
        draws = self._importance(self._fitted_rows(X), samples, self._generator(random_state))
        return joined(bounds.iwae(part.log_weights) for part in draws)

    def posterior_gaps(
        self,
        X: Any,
        *,
        samples: int = 1000,
        most_rows: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> Float64Array:
        """Estimate KL(q(z | x) ‖ p(z | x)), which the ELBO falls short of log p(x) by: ``(n,)`` nats (P2 Eq. 2).

        :meth:`log_likelihood` minus the ELBO of the same draws: not below 0, and in expectation below the KL, towards
        which it rises with ``samples``. Of all rows, or of ``most_rows`` of them, evenly spread. Of a model with labels
        it is the divergence of q(y | x) q(z | x).
        """
        parameters.integer("samples", samples, minimum=2)
        rows, generator = self._fitted_rows(X), self._generator(random_state)
        index = None if most_rows is None else evenly(len(rows), parameters.integer("most_rows", most_rows))
        # Draws of their own for each row: errors of draws that all share would not average out over rows.
        draws = self._importance(rows, samples, generator, index, shared=False)
        return joined(bounds.iwae(part.log_weights.double()) - part.elbo for part in draws)

    def posterior_samples(
        self, X: Any, n: int = 1, *, samples: int = 1000, random_state: int | np.random.RandomState | None = 0
    ) -> Float64Array:
        """Draw codes from the true posterior p(z | x): ``(rows, n, latent_dim)``.

        By sampling importance resampling: of ``samples`` draws from q(z | x), n are taken with replacement, each with
        probability proportional to its weight p(x, z)/q(z | x). More samples, less of q in them.
        """
        parameters.integer("n", n)
        parameters.integer("samples", samples)
        generator = self._generator(random_state)
        chosen = []
        for draws in self._importance(self._fitted_rows(X), samples, generator):
            weights = torch.softmax(draws.log_weights.double(), 0).T
            picked = torch.multinomial(weights, n, replacement=True, generator=generator)
            codes = draws.codes.transpose(0, 1)
            chosen.append(codes.gather(1, picked[..., None].expand(-1, -1, codes.shape[2])))
        return joined(iter(chosen))

    def _importance(
        self,
        rows: Rows,
        samples: int,
        generator: torch.Generator,
        index: npt.NDArray[np.intp] | None = None,
        *,
        shared: bool = True,
    ) -> Iterator[Draws]:
        """Yield so many draws of q(z | x) for each row, a pass at a time, from the same noise for every row or not."""
        model: VariationalAutoencoder = self.module_
        latents = model.scoring_noise.shape[1]

        def drawn(count: int) -> Tensor:
            return torch.randn(samples, count, latents, generator=generator, device=self._device)

        with ordinary(), torch.no_grad():
            common = drawn(1) if shared else None
            for part, real in self._passes(rows, index):
                noise = drawn(real) if common is None else common.expand(-1, real, -1)
                draws = [model.draws(part[:real], some, completing=True) for some in torch.split(noise, DRAWN_AT_ONCE)]
                codes = torch.cat([some.codes for some in draws])
                log_likelihoods = torch.cat([some.log_likelihoods for some in draws])
                used = torch.cat([some.noise for some in draws])
                lower = [some.lower for some in draws if some.lower is not None]
                joint = torch.cat(lower) if lower else None
                yield Draws(draws[0].mean, draws[0].log_std, used, codes, log_likelihoods, joint)

    # --- the latent space ------------------------------------------------------------------------------

    @property
    def latent_prior(self) -> str:
        """Codes are meant to follow N(0, I)."""
        return "euclidean"

    def _decoded(self, codes: Tensor, generator: torch.Generator) -> Tensor:
        model: VariationalAutoencoder = self.module_
        return model.likelihood.mean(model.decoder(codes))

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
        """Return E_q ‖x − μ(z)‖²/d of each row ``(n,)``: their mean is γ's closed-form optimum (P4 Eq. 6).

        In squares of what the network sees (standardised columns, pixels from 0 to 1). Where cells are missing d is how
        many are there on average, so that a row counts by its cells. The expectation is over
        ``samples`` draws that all rows share, as scores do: an interval over rows does not cover their error.
        """
        return self._expected_errors(self._fitted_rows(X))

    def _expected_errors(self, rows: Rows, index: npt.NDArray[np.intp] | None = None) -> Float64Array:
        def found(model: VariationalAutoencoder, part: Tensor) -> Tensor:
            # Of a mixed table numbers alone have a variance.
            numbers = part[:, model.likelihood.numeric] if isinstance(model.likelihood, Mixed) else part
            return torch.stack([model.expected_errors(part), cells_seen(numbers)], 1)

        errors, cells = joined(self._through(found, rows, index)).T
        weighted: Float64Array = errors * cells / (cells.mean() if cells.any() else np.nan)
        return weighted

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

    def _warn_about_training(self, normal: Tensor) -> None:
        """Say so where the posterior has collapsed."""
        if self.fit_report_["latents"]["active"] == 0:
            warnings.warn(COLLAPSE, UserWarning, stacklevel=3)

    @ordinary()
    def sample(self, n: int, *, random_state: int | np.random.RandomState | None = None) -> Any:
        """Draw ``n`` rows from the model: z from the prior, x from p(x | z), in the user's units and layout.

        Pixels go from 0 to 1; what a Gaussian's noise takes beyond is cut off.
        """
        check_is_fitted(self, "module_")
        parameters.integer("n", n)
        generator = self._generator(random_state)
        codes = prior_sample(n, self.settings_["latent_dim"], "euclidean", generator, self._device)
        model: VariationalAutoencoder = self.module_
        with torch.no_grad():
            return self._restore(model.likelihood.sample(model.decoder(codes), generator))
