"""The model behind the semi-supervised variational autoencoder: P2's M2 (Eqs. 3, 4 and 30)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from offmanifold.detectors.labels import LabelPosterior, Labels
from offmanifold.detectors.variational_autoencoder import Draws, VariationalAutoencoder
from offmanifold.probability import bounds
from offmanifold.probability.distances import distance
from offmanifold.probability.latents import split_posterior
from offmanifold.probability.likelihoods import Likelihood, Mixed
from offmanifold.probability.missing import filled


class SemiSupervisedAutoencoder(VariationalAutoencoder):
    """p(y) p(z) p(x | y, z), with q(z | x) and q(y | x) for unlabelled rows and q(z | x, y) for labelled ones.

    q(z | x) does not see y: on that P2's claims rest.

    Parameters
    ----------
    encoder, decoder, likelihood, latent_dim, samples
        As for :class:`~offmanifold.detectors.variational_autoencoder.VariationalAutoencoder`; the decoder takes (z, y).
    classifier : Module
        ``(n, *shape) → (n, labels.parameters)``.
    features, labelled_head : Module
        ``(n, *shape) → (n, f)`` and ``(n, f + labels.width) → (n, 2 latent_dim)``: q(z | x, y).
    labels : Labels
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        samples: int,
        *,
        classifier: nn.Module,
        features: nn.Module,
        labelled_head: nn.Module,
        labels: Labels,
    ) -> None:
        super().__init__(encoder, decoder, likelihood, latent_dim, samples)
        self.classifier, self.features, self.labelled_head = classifier, features, labelled_head
        self.labels = labels
        if labels.kind == "continuous":  # y is one more number to draw
            noise = torch.randn(samples, latent_dim + 1, generator=torch.Generator().manual_seed(0))
            self.register_buffer("scoring_noise", noise)

    def label_posterior(self, rows: Tensor) -> LabelPosterior:
        """Return q(y | x); a missing cell counts as 0."""
        return LabelPosterior(self.labels, self.classifier(filled(rows)))

    def labelled_posterior(self, rows: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of q(z | x, y)."""
        return split_posterior(self.labelled_head(torch.cat([self.features(rows), told], 1)))

    def decode(self, codes: Tensor, told: Tensor) -> Tensor:
        """Return the decoder's output for z ``(n, k)`` and y ``(n, width)``."""
        decoded: Tensor = self.decoder(torch.cat([codes, told], 1))
        return decoded

    def likelihoods(self, rows: Tensor, codes: Tensor, told: Tensor, *, learning: float = 1.0) -> Tensor:
        """Return log p(x | y, z) ``(samples, n)`` for codes ``(samples, n, k)`` and labels ``(samples, n, width)``.

        In training a γ that follows the errors follows these as part ``learning`` of a step.
        """
        repeated = rows.repeat(len(codes), *[1] * (rows.ndim - 1))
        decoded = self.decode(codes.flatten(0, 1), told.flatten(0, 1))
        return self.likelihood.log_prob(repeated, decoded, learning=learning).view(len(codes), len(rows))

    def _classes(self, n: int, like: Tensor) -> Tensor:
        """Return every class for every row ``(classes, n, width)``."""
        return torch.eye(self.labels.width, dtype=like.dtype, device=like.device)[:, None].expand(-1, n, -1)

    def by_class(self, rows: Tensor, codes: Tensor) -> Tensor:
        """Return log p(x | y, z) of every class: ``(samples, classes, n)``."""
        classes = self._classes(len(rows), codes)
        found = [self.likelihoods(rows, z.expand(len(classes), -1, -1), classes) for z in codes]
        return torch.stack(found)

    def _points(self, rows: Tensor, noise: Tensor) -> tuple[Draws, Tensor, LabelPosterior]:
        """Return draws of z whose likelihoods are still to come, continuous labels drawn with them, and q(y | x).

        For continuous labels the last number of ``noise`` draws y.
        """
        whole = self.completed(rows)
        mean, log_std = self.posterior(whole)
        posterior = self.label_posterior(whole)
        noise, for_label = noise[..., : mean.shape[1]], noise[..., mean.shape[1] :]
        told = for_label if self.labels.kind == "discrete" else posterior.mean + posterior.log_std.exp() * for_label
        return Draws(mean, log_std, noise, mean + log_std.exp() * noise, noise[..., 0]), told, posterior

    def _drawn(self, rows: Tensor, noise: Tensor) -> tuple[Draws, Tensor]:
        """Return draws of z with log p(x | z), and E_q log p(x | y, z) ``(n,)``: classes are summed over exactly.

        Of continuous labels each draw has one, whose weight p(y)/q(y | x) is part of the likelihood.
        """
        draws, told, posterior = self._points(rows, noise)
        if self.labels.kind == "discrete":
            found = self.by_class(rows, draws.codes)
            expected = (found * posterior.log_q.T.exp()).sum(1)
            summed = torch.logsumexp(found + posterior.log_p[:, None], 1)
            return draws._replace(log_likelihoods=summed, lower=expected - posterior.kl), expected.mean(0)
        found = self.likelihoods(rows, draws.codes, told)
        ratio = torch.stack([posterior.prior_log_prob(y) - posterior.log_prob(y) for y in told])
        return draws._replace(log_likelihoods=found + ratio), found.mean(0)

    def _scoring_noise(self, rows: Tensor) -> Tensor:
        return self.scoring_noise[:, None].expand(-1, len(rows), -1)

    def draws(self, rows: Tensor, noise: Tensor, *, learning: bool = True, completing: bool = True) -> Draws:
        """Draw z from q(z | x), with log p(x | z); what is missing of x is always completed first."""
        return self._drawn(rows, noise)[0]

    def scored(self, rows: Tensor) -> Draws:
        """Return the draws that scores use."""
        return self.draws(rows, self._scoring_noise(rows))

    def _over_scores(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights, codes and labels of the points that the ELBO's expectation is taken over."""
        draws, told, posterior = self._points(rows, self._scoring_noise(rows))
        codes, samples = draws.codes, len(draws.codes)
        if self.labels.kind == "continuous":
            return torch.full((samples, len(rows)), 1 / samples, device=rows.device), codes, told
        classes = self._classes(len(rows), codes)
        weights = posterior.log_q.T.exp().repeat(samples, 1) / samples
        return weights, codes.repeat_interleave(len(classes), 0), classes.repeat(samples, 1, 1)

    def expected_cells(self, rows: Tensor) -> Tensor:
        """Return what each cell adds to E_q log p(x | y, z): ``(n, *shape)`` nats, y summed over exactly."""
        return self._expected(rows, lambda decoded: self.likelihood.cells(rows, decoded))

    def expected_errors(self, rows: Tensor) -> Tensor:
        """Return E_q ‖x − E[x | y, z]‖²/d ``(n,)``."""
        numeric = self.likelihood.numeric if isinstance(self.likelihood, Mixed) else slice(None)

        def errors(decoded: Tensor) -> Tensor:
            return distance(rows[:, numeric], self.likelihood.mean(decoded)[:, numeric], "squared")

        return self._expected(rows, errors)

    def _expected(self, rows: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mean of what ``compute`` makes of the decoder's output, over the points of the ELBO."""
        parts = [
            weight.view(-1, *[1] * (part.ndim - 1)) * part
            for weight, z, y in zip(*self._over_scores(rows), strict=True)
            for part in [compute(self.decode(z, y))]
        ]
        return torch.stack(parts).sum(0)

    def _once(self, rows: Tensor) -> Tensor:
        """Return E[x | z, y] at the mean of q(z | x) and of q(y | x) ``(n, *shape)``."""
        posterior = self.label_posterior(rows)
        told = posterior.log_q.exp() if self.labels.kind == "discrete" else posterior.mean
        return self.likelihood.mean(self.decode(self.encode(rows), told))

    def latent_terms(self, rows: Tensor) -> Tensor:
        """Return each latent's KL and, last, the label's: ``(n, latents + 1)`` nats."""
        return torch.cat([super().latent_terms(rows), self.label_posterior(self.completed(rows)).kl[:, None]], 1)

    def energies(self, rows: Tensor, *, decoded: bool = True) -> dict[str, Tensor]:
        """Return the terms of the unlabelled bound (P2 Eq. 30) and minus the importance-weighted one, ``(n,)`` each."""
        kl = {"kl": self.latent_terms(rows).sum(1)}
        if not decoded:
            return kl
        draws, expected = self._drawn(rows, self._scoring_noise(rows))
        return {"reconstruction": -expected, **kl, "iwae": -bounds.iwae(draws.log_weights)}
