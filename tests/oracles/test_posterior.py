"""Posterior mismatch against a linear Gaussian model, whose posteriors are Gaussian, and against a toy world."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from offmanifold import AE, VAE
from offmanifold.data.worlds import WORLDS
from offmanifold.measures import best_gaussian, posterior_gap, posterior_mismatch

SLOPE, BIAS = np.array([0.7, -1.5, 0.2]), np.array([0.0, 1.0, -0.5])


def linear(z: np.ndarray) -> np.ndarray:
    return z * SLOPE + BIAS


def true_posterior(x: np.ndarray, variance: Any) -> tuple[np.ndarray, float]:
    precision = 1 + (SLOPE**2 / variance).sum()
    return ((x - BIAS) * SLOPE / variance).sum(1) / precision, precision**-0.5


@pytest.mark.parametrize("variance", [0.5, 1e-4, np.array([0.1, 1e-3, 2.0])], ids=["wide", "narrow", "per-dimension"])
def test_a_linear_decoder(variance: Any) -> None:
    rng = np.random.default_rng(0)
    x = linear(rng.normal(size=(20, 1))) + np.sqrt(variance) * rng.normal(size=(20, 3))
    mean, std = true_posterior(x, variance)
    assert posterior_mismatch(mean, np.full(20, std), x, linear, variance) == pytest.approx(0, abs=1e-7)
    best_mean, best_std = best_gaussian(x, linear, variance)
    np.testing.assert_allclose(best_mean, mean, atol=2e-3 * std)
    np.testing.assert_allclose(best_std, std, rtol=2e-3)
    for shift, factor in ((0.5, 1.0), (-2.0, 0.01), (3.0, 4.0)):
        q_mean, q_std = mean + shift * std, factor * std
        expected = 0.5 * (factor**2 + shift**2 - 1) - np.log(factor)
        found = posterior_mismatch(q_mean[:, None], np.full((20, 1), q_std), x, linear, variance)
        np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("name", ["figure-8", "clusters", "spiral-dots"])
def test_a_world_agrees_with_its_posterior_density(name: str) -> None:
    world, rng = WORLDS[name], np.random.default_rng(1)
    x, _, _ = world.sample(10, rng)
    mean, std = rng.normal(size=10), rng.uniform(0.2, 0.8, 10)
    found = posterior_mismatch(mean, std, x, world.decode, world.noise_variance)
    z = np.linspace(-8, 8, 80_001)
    q = norm.pdf(z, mean[:, None], std[:, None])
    # Where p(z | x) underflows, its logarithm does not.
    log_p = np.array([world.log_likelihood(np.tile(row, (len(z), 1)), z) for row in x]) + norm.logpdf(z)
    log_p -= world.log_prob(x)[:, None]
    expected = (q * (norm.logpdf(z, mean[:, None], std[:, None]) - log_p)).sum(1) * (z[1] - z[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found > 0).all()


def test_a_posterior_with_two_modes_costs_log_two() -> None:
    """|z| seen without much noise: the best Gaussian covers one of two modes, and misses log 2 nats."""
    z = np.array([0.5, 1.0, 1.5])
    variance = 1e-4
    std = (1 + 1 / variance) ** -0.5
    found = posterior_mismatch(z * std**2 / variance, np.full(3, std), z[:, None], np.abs, variance)
    np.testing.assert_allclose(found, np.log(2), atol=1e-6)
    best = best_gaussian(z[:, None], np.abs, variance)
    np.testing.assert_allclose(np.abs(best[0]), z, rtol=1e-3)
    np.testing.assert_allclose(posterior_mismatch(*best, z[:, None], np.abs, variance), np.log(2), atol=1e-5)


@pytest.mark.parametrize("name", ["clusters", "spiral-dots"])
def test_no_gaussian_is_better_than_the_best(name: str) -> None:
    world, rng = WORLDS[name], np.random.default_rng(3)
    x, z, _ = world.sample(12, rng)

    def mismatch(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        return posterior_mismatch(mean, std, x, world.decode, world.noise_variance)

    mean, std = best_gaussian(x, world.decode, world.noise_variance)
    least = mismatch(mean, std)
    for _ in range(20):
        near = mismatch(mean + 0.3 * std * rng.normal(size=12), std * np.exp(0.3 * rng.normal(size=12)))
        assert (near > least - 1e-5).all()
        far = mismatch(z[:, 0] + 0.2 * rng.normal(size=12), np.exp(rng.uniform(-5, 0, 12)))
        assert (far > least - 1e-5).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": np.zeros(4)}, r"mean must be of shape \(5,\) or \(5, 1\).* got \(4,\)"),
        ({"std": np.ones((5, 2))}, r"std must be .* got \(5, 2\)"),
        ({"std": np.zeros(5)}, "std must be positive everywhere; got 0"),
        ({"x": np.zeros(5)}, r"x must be of shape \(n, d\); got \(5,\)"),
        ({"noise_variance": -1.0}, "noise_variance must be positive"),
        ({"noise_variance": np.ones(2)}, r"noise_variance must be one number or of shape \(3,\)"),
        ({"decode": lambda z: z}, r"decode must return \(16385, 3\) .* got \(16385, 1\)"),
        ({"decode": lambda z: np.where(z > 7.9, np.nan, linear(z))}, "decode must return finite numbers"),
        ({"nodes": 1}, "nodes must be an integer of at least 3"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "mean": np.zeros(5), "std": np.ones(5), "x": np.zeros((5, 3)), "decode": linear, "noise_variance": 1.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        posterior_mismatch(**(given | arguments))


def test_a_fitted_models_gap_rises_to_the_quadrature() -> None:
    """By sampling as by quadrature, row by row; one latent that is told little of a circle leaves a gap to find."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 300)
    x = np.column_stack([np.cos(angle), np.sin(angle)]) + 0.1 * rng.normal(size=(300, 2))
    detector = VAE(latent_dim=1, gamma=0.1, steps=150, random_state=0, verbose=False).fit(x)

    def decode(z: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return detector._decoded(torch.from_numpy(z).float(), torch.Generator()).double().numpy()

    rows = x[:20]
    exact = posterior_mismatch(*detector.posterior(rows), detector.prepared(rows), decode, 0.1)
    assert exact.mean() > 0.02
    few, many = (detector.posterior_gaps(rows, samples=samples) for samples in (5, 20_000))
    # Where q misses a mode of the posterior, few draws hit it and weigh much.
    assert np.median(np.abs(many - exact)) < 0.01
    np.testing.assert_allclose(many, exact, atol=0.2)
    assert (few >= 0).all() and few.mean() < exact.mean()
    some = posterior_gap(detector, x, samples=5, most_rows=20, random_state=1)
    assert some.low < some.value < some.high
    assert some == posterior_gap(detector, x[np.linspace(0, 299, 20).astype(int)], samples=5, random_state=1)
    # Each row has draws of its own: the interval is then of draws, too.
    alike = detector.posterior_gaps(np.repeat(x[:1], 9, 0), samples=5)
    assert len(set(alike)) == 9
    with pytest.raises(TypeError, match="AE has no posterior"):
        posterior_gap(AE(steps=1, random_state=0, verbose=False).fit(x), x)


def test_the_gap_of_rows_with_missing_cells_is_that_of_the_posterior_scores_use() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6)) + 0.1 * rng.normal(size=(400, 6))
    detector = VAE(latent_dim=2, gamma=0.05, steps=200, random_state=0, verbose=False).fit(x)
    gappy = np.where(rng.random((60, 6)) < 0.4, np.nan, x[:60])
    bound = detector.log_likelihood(gappy, samples=2000) - detector.posterior_gaps(gappy, samples=2000)
    # The posterior of rows with means in their gaps is farther off by 3.6 nats.
    assert abs((bound - detector.scores(gappy)["elbo"]).mean()) < 0.3


def test_posteriors_far_outside_of_the_prior() -> None:
    """Rows 8 to 20 deviations out: the exact posterior of a linear decoder costs nothing there either."""
    X = np.array([8.0, 9.0, 20.0])
    x = np.column_stack([X, np.zeros(3)])

    def decode(z: np.ndarray) -> np.ndarray:
        return np.hstack([z, 0 * z])

    mean, std = X / 1.01, np.full(3, (0.01 / 1.01) ** 0.5)
    assert posterior_mismatch(mean, std, x, decode, 0.01) == pytest.approx(np.zeros(3), abs=1e-6)
    with pytest.raises(ValueError, match=r"best Gaussian of row 1 lies far beyond \|z\| = 6, where none is looked for"):
        best_gaussian(x[[0, 2]] - [[2, 0]], decode, 0.01)
    assert best_gaussian(x[:1] - [[2, 0]], decode, 0.01)[0] == pytest.approx([6 / 1.01], abs=1e-3)
