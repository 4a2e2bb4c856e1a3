"""What P0 and P4 prove of the Gaussian VAE and of penalised autoencoders, on cases that can be computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Generator as G

from offmanifold import VAE
from offmanifold.data.inputs import InputSpec
from offmanifold.detectors.vae import VariationalAutoencoder
from offmanifold.measures.latents import averaged_kl
from offmanifold.networks.network import initialise
from offmanifold.studies import penalties, smoothing
from offmanifold.training.loop import train


def linear_vae(rows: np.ndarray, latent_dim: int, beta: float = 1.0) -> VariationalAutoencoder:
    """Train a linear VAE with γ learned on all of ``rows`` at once."""
    detector = VAE(
        latent_dim=latent_dim, hidden=(), gamma="learned", beta=beta, steps=3000, batch_size=len(rows),
        learning_rate=0.05, optimizer="adam", schedule="cosine", samples=1,
    )  # fmt: skip
    spec = InputSpec("table", rows.shape[1:], "columns")
    settings = detector._resolved(spec, len(rows))
    model = detector._build(spec, settings)
    initialise(model, G().manual_seed(0))
    data = torch.from_numpy(rows).float()
    train(model, detector._phases(model, settings), data, data, seed=0)
    return model


def with_variances(variances: list[float], n: int = 600) -> np.ndarray:
    """Return rotated, centred rows ``(n, d)`` whose covariance has exactly these eigenvalues."""
    rng = np.random.default_rng(0)
    d = len(variances)
    drawn = rng.normal(size=(n, d))
    white = np.linalg.qr(drawn - drawn.mean(0))[0] * n**0.5
    return (white * np.sqrt(variances)) @ np.linalg.qr(rng.normal(size=(d, d)))[0]


VARIANCES = [4.0, 2.0, 1.0] + [0.01] * 5


@pytest.fixture(scope="module")
def pruned() -> tuple[np.ndarray, VariationalAutoencoder]:
    """Return rows of the variances above, and a linear VAE that has more latents than they need."""
    rows = with_variances(VARIANCES)
    return rows, linear_vae(rows, latent_dim=6)


def test_superfluous_latents_go_to_their_prior_and_gamma_to_the_dropped_eigenvalues(
    pruned: tuple[np.ndarray, VariationalAutoencoder],
) -> None:
    rows, model = pruned
    assert model.likelihood.gamma.item() == pytest.approx(0.01, rel=0.02)
    with torch.no_grad():
        mean, log_std = model.posterior(torch.from_numpy(rows).float())
    kl = np.sort(averaged_kl(mean.double().numpy(), log_std.exp().double().numpy()))
    assert (kl[:3] < 1e-3).all()
    assert (kl[3:] > 1).all()


def test_a_linear_vae_projects_as_probabilistic_pca_does(pruned: tuple[np.ndarray, VariationalAutoencoder]) -> None:
    """Onto the largest axes, and there towards the mean by γ/λ: encode and decode are U (1 − γ/Λ) Uᵀ."""
    rows, model = pruned
    axes = np.linalg.eigh(rows.T @ rows)[1][:, :-4:-1]
    expected = rows @ axes * (1 - 0.01 / np.array(VARIANCES[:3])) @ axes.T
    with torch.no_grad():
        mean, _ = model.posterior(torch.from_numpy(rows).float())
        found = model.decoder(mean).numpy()
    # A hundredth of the rows' size √7 is what training with random draws of z leaves.
    assert np.sqrt(((found - expected) ** 2).sum(1).mean()) < 0.01 * np.sqrt(7)


def best_gamma(signal: float, noise: float, d: int, r: int, beta: float) -> float:
    """Return γ of the linear β-VAE's optimum: r axes of variance ``signal``, d − r of variance ``noise``.

    Minimised are decoder w, encoder v, posterior variance s of one of the r like axes, and γ.
    """

    def loss(values: np.ndarray) -> float:
        w, v = values[:2]
        s, gamma = np.exp(values[2:])
        error = r * (signal * (1 - w * v) ** 2 + w**2 * s) + (d - r) * noise
        kl = r * (s - np.log(s) - 1 + v**2 * signal)
        return float(error / gamma + d * np.log(gamma) + beta * kl)

    starts = ([0.1, 0.1, 0.0, 0.0], [1.0, 1.0, -3.0, np.log(noise)])
    found = min((minimize(loss, start, method="Nelder-Mead", options={"maxiter": 20_000, "xatol": 1e-9, "fatol": 1e-12})
                 for start in starts), key=lambda result: result.fun)  # fmt: skip
    return float(np.exp(found.x[3]))


@pytest.mark.parametrize(("beta", "sparse"), [(1.0, True), (2.0, True), (4.5, False)])
def test_a_beta_above_d_over_r_leaves_no_sparse_optimum(beta: float, sparse: bool) -> None:
    """P4 §2.3: near the sparse solution the loss goes as (d − βr) log γ; here d/r = 3."""
    d, r, noise = 6, 2, 1e-4
    rows = with_variances([1.0] * r + [noise] * (d - r))
    expected = best_gamma(1.0, noise, d, r, beta)
    gamma = linear_vae(rows, r, beta).likelihood.gamma.item()
    assert gamma == pytest.approx(expected, rel=0.05)
    assert (gamma < 10 * noise) == sparse


@pytest.mark.parametrize("row", list(penalties.ROWS))
def test_bounded_slopes_prefer_the_code_that_is_not_sparse(row: str) -> None:
    """P4 Theorem 4, P0 Theorem 1: whatever the bound, a small enough square turns the order; a logarithm never does."""
    penalty, slope = penalties.ROWS[row]
    if slope != "∞":
        u = np.linspace(0, 3, 100_001)
        steepest = np.abs(np.diff(penalty(u)) / np.diff(u)).max()
        assert steepest == pytest.approx(float(slope), rel=0.01)
    wins = [sparse < dense for dense, sparse in (penalties.losses(penalty, side) for side in (1.0, 0.1, 1e-3))]
    assert wins == ([True] * 3 if row == "log" else [True, False, False])


def test_both_codes_of_the_counterexample_reconstruct() -> None:
    t, x = penalties.curve(0.1)
    assert (np.diff(t) > 0).all() and t[0] == 0 and t[-1] == 1
    assert x.min() == pytest.approx(0, abs=1e-6) and x.max() == pytest.approx(0.1, abs=1e-6)
    # The decoder that winds is a function: different places have different points (away from crossings, neighbours).
    assert (np.linalg.norm(np.diff(x, axis=0), axis=1) > 0).all()


def test_the_linear_vaes_slice_is_its_expected_loss() -> None:
    """Against Monte Carlo of −ELBO with each latent's variance at its best."""
    rng = np.random.default_rng(0)
    decoder, encoder = rng.normal(size=(4, 2)), rng.normal(size=(2, 4)) * 0.3
    half = rng.normal(size=(4, 4))
    gamma = 0.3
    X = rng.normal(size=(400_000, 4)) @ half.T
    variance = 1 / (1 + (decoder**2).sum(0) / gamma)
    z = X @ encoder.T + np.sqrt(variance) * rng.normal(size=(len(X), 2))
    errors = ((X - z @ decoder.T) ** 2).sum(1)
    kl = variance - np.log(variance) + (X @ encoder.T) ** 2
    expected = 0.5 * (errors.mean() / gamma + 4 * np.log(gamma) + kl.sum(1).mean())
    assert smoothing.loss(half @ half.T, decoder, encoder, gamma) == pytest.approx(expected, rel=0.01)


def test_minima_are_counted() -> None:
    places = np.linspace(0, 6 * np.pi, 1000)
    assert smoothing.minima(np.cos(places)) == 3
    assert smoothing.minima(places) == 0
    assert smoothing.minima(np.array([1.0, 0.0, 0.0, 1.0])) == 1
