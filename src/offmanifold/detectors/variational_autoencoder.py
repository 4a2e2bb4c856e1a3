"""The variational autoencoder's module, and what its draws are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from offmanifold.probability import bounds
from offmanifold.probability.distances import distance
from offmanifold.probability.divergences import kl_to_standard_normal
from offmanifold.probability.latents import split_posterior
from offmanifold.probability.likelihoods import Likelihood, Mixed
from offmanifold.probability.missing import completed, filled


class Draws(NamedTuple):
    """Draws from q(z | x) and what the decoder says of them.

    Attributes
    ----------
    mean, log_std : (n, k)
        Of q(z | x).
    noise, codes : (samples, 1 or n, k) and (samples, n, k)
        codes = mean + std · noise.
    log_likelihoods : (samples, n)
        log p(x | z), in nats.
    lower : (samples, n), optional
        What stands for them in the ELBO, where q draws more than z: labels.
    """

    mean: Tensor
    log_std: Tensor
    noise: Tensor
    codes: Tensor
    log_likelihoods: Tensor
    lower: Tensor | None = None

    @property
    def kl(self) -> Tensor:
        """KL(q(z | x) ‖ p(z)): ``(n,)`` nats."""
        return kl_to_standard_normal(self.mean, self.log_std).sum(1)

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z) − log q(z | x): ``(samples, n)`` nats."""
        return bounds.gaussian_log_weights(self.log_likelihoods, self.codes, self.noise, self.log_std)

    @property
    def elbo(self) -> Tensor:
        """The ELBO by these draws alone ``(n,)`` float64: not above the importance-weighted bound of the same."""
        weights = self.log_weights.double()
        return (weights if self.lower is None else weights - self.log_likelihoods + self.lower).mean(0)


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
        # Common random numbers: every row is scored with the same draws, so a score is a function of the row. Their
        # errors are common, too, and do not average out over rows.
        noise = torch.randn(samples, latent_dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("scoring_noise", noise)

    def posterior(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of q(z | x), ``(n, latent_dim)`` each; a missing cell counts as 0."""
        return split_posterior(self.encoder(filled(rows)))

    def encode(self, rows: Tensor) -> Tensor:
        """Return the posterior means ``(n, latent_dim)``; a missing cell counts as 0."""
        return self.posterior(rows)[0]

    def reconstruct(self, rows: Tensor) -> Tensor:
        """Return E[x | z] at the posterior mean ``(n, *shape)``; what is missing of x is completed first."""
        return self._once(self.completed(rows))

    def completed(self, rows: Tensor) -> Tensor:
        """Return rows with E[x | z] in missing cells."""
        return completed(rows, self._once)

    def _once(self, rows: Tensor) -> Tensor:
        return self.likelihood.mean(self.decoder(self.encode(rows)))

    def draws(self, rows: Tensor, noise: Tensor, *, learning: bool = True, completing: bool = False) -> Draws:
        """Encode once, and decode z = mean + std · noise for noise ``(samples, n, latent_dim)``.

        Without ``learning`` a γ that follows the errors does not follow these; ``completing`` what is missing first is
        what scores do.
        """
        mean, log_std = self.posterior(self.completed(rows) if completing else rows)
        codes = mean + log_std.exp() * noise
        decoded = self.decoder(codes.flatten(0, 1))
        repeated = rows if len(noise) == 1 else rows.repeat(len(noise), *[1] * (rows.ndim - 1))
        log_likelihoods = self.likelihood.log_prob(repeated, decoded, learning=float(learning))
        return Draws(mean, log_std, noise, codes, log_likelihoods.view(len(noise), len(rows)))

    def scored(self, rows: Tensor) -> Draws:
        """Return the draws that scores use: the same noise for every row, decoded one by one to save memory."""
        mean, log_std = self.posterior(self.completed(rows))
        noise = self.scoring_noise[:, None]
        codes = mean + log_std.exp() * noise
        log_likelihoods = torch.stack([self.likelihood.log_prob(rows, self.decoder(z)) for z in codes])
        return Draws(mean, log_std, noise, codes, log_likelihoods)

    def expected_errors(self, rows: Tensor) -> Tensor:
        """Return E_q ‖x − E[x | z]‖²/d ``(n,)`` over the draws that scores use, the same for every row."""
        mean, log_std = self.posterior(self.completed(rows))
        codes = mean + log_std.exp() * self.scoring_noise[:, None]
        means = (self.likelihood.mean(self.decoder(z)) for z in codes)
        if isinstance(self.likelihood, Mixed):  # numbers alone have a variance
            rows, means = rows[:, self.likelihood.numeric], (again[:, self.likelihood.numeric] for again in means)
        return torch.stack([distance(rows, again, "squared") for again in means]).mean(0)

    def expected_cells(self, rows: Tensor) -> Tensor:
        """Return what each cell adds to E_q log p(x | z): ``(n, *shape)`` nats, over the draws that scores use."""
        mean, log_std = self.posterior(self.completed(rows))
        codes = mean + log_std.exp() * self.scoring_noise[:, None]
        return torch.stack([self.likelihood.cells(rows, self.decoder(z)) for z in codes]).mean(0)

    def latent_terms(self, rows: Tensor) -> Tensor:
        """Return what each latent adds to the KL: ``(n, latents)`` nats."""
        return kl_to_standard_normal(*self.posterior(self.completed(rows)))

    def energies(self, rows: Tensor, *, decoded: bool = True) -> dict[str, Tensor]:
        """Return −E_q log p(x | z), KL(q ‖ p) and minus the importance-weighted bound, ``(n,)`` each, in nats.

        Without ``decoded`` the KL alone, which needs no decoder.
        """
        if not decoded:
            return {"kl": self.latent_terms(rows).sum(1)}
        draws = self.scored(rows)
        return {
            "reconstruction": -draws.log_likelihoods.mean(0),
            "kl": draws.kl,
            "iwae": -bounds.iwae(draws.log_weights),
        }
