"""What training minimises, against the papers' formulas by the same draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from offmanifold import AE, VAE, WAE, NegativeVAE, SemiSupervisedVAE
from offmanifold.detectors import negatives
from offmanifold.detectors.autoencoder import noised
from offmanifold.probability import bounds
from offmanifold.probability.divergences import kl_to_standard_normal, mmd

LINE = np.random.default_rng(0).normal(size=(100, 3))
OWN: dict[str, Any] = {"latent_dim": 2, "steps": 2, "random_state": 0, "verbose": False}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def noise(*shape: int, draws: torch.Generator) -> Tensor:
    return torch.empty(*shape).normal_(generator=draws)


def test_an_autoencoders_loss_is_the_error_of_undoing_noise_and_a_penalty_a_dimension() -> None:
    """P4 Eq. 7 with h the square and 1/d: rows come noised, and are compared with themselves."""
    detector = AE(noise=0.5, latent_penalty="identity", scale=None, **OWN).fit(LINE)
    model, rows = detector.module_, torch.from_numpy(LINE[:8]).float()
    values, _ = detector._phases(model, detector.settings_)[0].updates[0].loss(rows, generator())
    noisy = noised(rows, detector.settings_["noise"], generator())
    codes = model.encode(noisy)
    assert not torch.equal(noisy, rows)
    expected = (rows - model.decode(codes)).square().mean(1).mean() + codes.square().mean(0).sum() / 3
    torch.testing.assert_close(values.mean(), expected)


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
def test_a_vaes_loss_is_its_bound_a_dimension(bound: str) -> None:
    """And the gradient of a row's nats by its code is what is recorded of the latents (P4, Fig. 4b)."""
    beta = 3.0 if bound == "elbo" else 1.0
    detector = VAE(bound=bound, training_samples=4, beta=beta, **OWN).fit(LINE)
    model, rows = detector.module_.requires_grad_(), torch.from_numpy(detector.prepared(LINE[:8])).float()
    values, metrics = detector._phases(model, detector.settings_)[0].updates[0].loss(rows, generator())
    torch.autograd.grad(values.mean(), list(model.encoder.parameters()))
    drawn = model.draws(rows, noise(4, 8, 2, draws=generator()))
    nats = -(bounds.iwae(drawn.log_weights) if bound == "iwae" else drawn.log_likelihoods.mean(0) - beta * drawn.kl)
    torch.testing.assert_close(3 * values, nats)
    (slope,) = torch.autograd.grad(nats.sum(), drawn.codes)
    recorded: Any = metrics["gradient_norm/latent"]
    torch.testing.assert_close(recorded(), slope.sum(0).norm(dim=1).mean())


@pytest.mark.parametrize(("weight", "kernel"), [(0.0, "gaussian"), (7.0, "gaussian"), (7.0, "inverse-multiquadric")])
def test_a_waes_loss_is_its_error_and_the_discrepancy_of_its_codes(weight: float, kernel: str) -> None:
    detector = WAE(mmd_weight=weight, kernel=kernel, **OWN).fit(LINE)
    model, rows = detector.module_, torch.from_numpy(detector.prepared(LINE[:8])).float()
    values, _ = detector._phases(model, detector.settings_)[0].updates[0].loss(rows, generator())
    codes = model.encode(rows)
    drawn = torch.randn(8, 2, generator=generator())
    errors = (rows - model.decode(codes)).square().mean(1)
    torch.testing.assert_close(values, errors + weight * mmd(codes, drawn, kernel=kernel))


@pytest.mark.parametrize("negative_loss", ["prior", "eubo"])
def test_negatives_count_by_their_weights(negative_loss: str) -> None:
    """In each update what they add is in proportion; and given ones are drawn from all there are."""

    def values(weight: float) -> list[Tensor]:
        own = detector.settings_ | {"negatives": {"random": weight}, "negative_bounds": [-1.5, 1.5]}
        return [update.loss(rows, generator())[0] for update in detector._phases(model, own)[0].updates]

    detector = NegativeVAE(negatives="random", negative_loss=negative_loss, **OWN).fit(LINE)
    model, rows = detector.module_, torch.from_numpy(detector.prepared(LINE[:8])).float()
    added = [[b - a for a, b in zip(values(0.0), values(weight), strict=True)] for weight in (1.0, 3.0)]
    for once, thrice in zip(*added, strict=True):
        torch.testing.assert_close(thrice, 3 * once)
    assert added[0][0].abs().max() > 0 and (added[0][1].abs().max() > 0) == (negative_loss == "eubo")
    pool = torch.arange(5.0)[:, None]
    drawn = negatives.given(pool)(torch.zeros(1000, 1), generator())
    assert set(drawn.flatten().tolist()) == {0, 1, 2, 3, 4}


def test_the_upper_bound_of_negatives_falls_as_far_as_its_floor() -> None:
    """−ELBO of rows plus the evidence upper bound of negatives, held D log 2 below the rows' ELBO; of both updates."""
    detector = NegativeVAE(negatives="random", negative_loss="eubo", upper_samples=5, **OWN).fit(LINE)
    model, rows = detector.module_, torch.from_numpy(detector.prepared(LINE[:8])).float()
    for update in detector._phases(model, detector.settings_ | {"negative_bounds": [-1.5, 1.5]})[0].updates:
        draws = generator()
        own = model.draws(rows, noise(1, 8, 2, draws=draws))
        elbo = own.log_likelihoods[0] - own.kl
        bad = torch.empty_like(rows).uniform_(-1.5, 1.5, generator=draws)
        upper = bounds.eubo(model.draws(bad, noise(5, 8, 2, draws=draws)).log_weights)
        floor = elbo.mean() - 3 * math.log(2)
        assert 0 < (upper < floor).sum() < 8
        torch.testing.assert_close(3 * update.loss(rows, generator())[0], -elbo + upper.clamp(min=floor))


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
@pytest.mark.parametrize("labels", ["discrete", "continuous"])
def test_the_semi_supervised_loss(labels: str, bound: str) -> None:
    """P2, Eqs. 29 to 32: bounds over relaxed labels where none is given, and the classifier's term where one is."""
    y = np.where(np.arange(100) % 2, (LINE[:, 0] > 0) if labels == "discrete" else LINE[:, 0], -1.0)
    own = {"labels": labels, "bound": bound, "training_samples": 3, "labelled_weight": 0.5, "classifier_weight": 7.0}
    detector = SemiSupervisedVAE(**own, **OWN).fit(LINE, y)
    model, rows = detector.module_, torch.from_numpy(detector.prepared(LINE[:8])).float()
    told = detector.labels_.encode(np.where(np.arange(8) % 2, y[:8], np.nan))  # the last column: whether it is known
    loss = detector._phases(model, detector.settings_)[0].updates[0].loss
    found = 3 * loss(torch.cat([rows, told], 1), generator())[0]
    draws, known = generator(), told[:, -1] > 0

    def weighted(likelihoods: Tensor, codes: Tensor, drawn: Tensor, log_std: Tensor) -> Tensor:
        ratio = (0.5 * (drawn**2 - codes**2) + log_std).sum(-1)
        return torch.logsumexp(likelihoods + ratio, 0) - math.log(3)

    x = rows[~known]
    mean, log_std = model.posterior(x)
    drawn = noise(3, len(x), 2, draws=draws)
    posterior = model.label_posterior(x)
    relaxed, ratio = posterior.relaxed(3, draws)
    codes = mean + log_std.exp() * drawn
    likelihoods, kl = model.likelihoods(x, codes, relaxed), kl_to_standard_normal(mean, log_std).sum(1)
    iwae = weighted(likelihoods + ratio, codes, drawn, log_std)
    torch.testing.assert_close(found[~known], -(iwae if bound == "iwae" else likelihoods.mean(0) - kl - posterior.kl))

    x, label = rows[known], told[known, :-1]
    mean, log_std = model.labelled_posterior(x, label)
    drawn = noise(3, len(x), 2, draws=draws)
    codes = mean + log_std.exp() * drawn
    likelihoods, posterior = model.likelihoods(x, codes, label.expand(3, -1, -1)), model.label_posterior(x)
    elbo = likelihoods.mean(0) - kl_to_standard_normal(mean, log_std).sum(1)
    lower = weighted(likelihoods, codes, drawn, log_std) if bound == "iwae" else elbo
    expected = 0.5 * (lower + posterior.prior_log_prob(label)) + 7.0 * posterior.log_prob(label)
    torch.testing.assert_close(found[known], -expected)
