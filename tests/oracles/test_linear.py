"""The linear Gaussian model against general distributions, a numerical optimum and a trained VAE's closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from offmanifold.measures import posterior_mismatch
from offmanifold.probability.linear import LinearGaussian
from offmanifold.studies import disentanglement, toy_vaes

RNG = np.random.default_rng(0)
MODEL = LinearGaussian(RNG.normal(size=(5, 3)), 0.3)


def rotation(k: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(k, k)))[0]


def joint_covariance(model: LinearGaussian) -> np.ndarray:
    """Return the covariance of (x, z)."""
    a = model.decoder
    return np.block([[model.covariance, a], [a.T, np.eye(a.shape[1])]])


def test_conditioning_the_joint_law_gives_the_posterior() -> None:
    d = len(MODEL.decoder)
    joint = joint_covariance(MODEL)
    np.testing.assert_allclose(MODEL.encoder, np.linalg.solve(joint[:d, :d], joint[:d, d:]).T)
    np.testing.assert_allclose(MODEL.precision, np.linalg.inv(joint)[d:, d:])


def test_entropy_and_divergence_are_those_of_normal_laws() -> None:
    own = multivariate_normal(np.zeros(5), MODEL.covariance)
    assert MODEL.entropy == pytest.approx(own.entropy())
    other = LinearGaussian(RNG.normal(size=(5, 2)), 0.7)
    # E log p of a quadratic is exact on ± √d · the covariance's root columns, whose covariance is the law's.
    root = np.sqrt(5) * np.linalg.cholesky(MODEL.covariance).T
    points = np.concatenate([root, -root])
    expected = own.logpdf(points) - multivariate_normal(np.zeros(5), other.covariance).logpdf(points)
    assert MODEL.divergence(other) == pytest.approx(expected.mean())
    assert MODEL.divergence(MODEL) == pytest.approx(0, abs=1e-12)


def test_rows_have_the_covariance() -> None:
    rows = MODEL.sample(200_000, np.random.default_rng(1))
    np.testing.assert_allclose(np.cov(rows.T), MODEL.covariance, atol=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_rotated_latents_leave_the_rows_law_alone(seed: int) -> None:
    turned = MODEL.rotated(rotation(3, seed))
    np.testing.assert_allclose(turned.covariance, MODEL.covariance, atol=1e-12)
    # The posterior's determinant stays, and with it what the gap is measured from.
    assert np.linalg.det(turned.precision) == pytest.approx(np.linalg.det(MODEL.precision))


def test_other_matrices_of_the_papers_form_change_it() -> None:
    """R = (Σ Vᵀ)⁻¹ (Λ − σ² I)^½ keeps p(x) for Λ = Σ² + σ² I alone, where it is V."""
    _, singular, right = np.linalg.svd(MODEL.decoder, full_matrices=False)

    def of(lam: np.ndarray) -> np.ndarray:
        return np.linalg.inv(np.diag(singular) @ right) @ np.diag(np.sqrt(lam - MODEL.noise_variance))

    right_one = MODEL.rotated(of(singular**2 + MODEL.noise_variance))
    np.testing.assert_allclose(right_one.covariance, MODEL.covariance, atol=1e-12)
    assert right_one.mean_field_gap == pytest.approx(MODEL.aligned().mean_field_gap, abs=1e-12)
    assert MODEL.divergence(MODEL.rotated(of(np.full(3, 2.0)))) > 0.01


def test_the_gap_is_that_of_the_best_independent_posterior() -> None:
    covariance = np.linalg.inv(MODEL.precision)

    def divergence(log_std: np.ndarray) -> float:
        """KL(N(0, diag) ‖ N(0, posterior covariance)) by the textbook."""
        own = np.diag(np.exp(2 * log_std))
        ratio = np.linalg.solve(covariance, own)
        return 0.5 * float(np.trace(ratio) - 3 - np.linalg.slogdet(ratio)[1])

    found = minimize(divergence, np.zeros(3), method="BFGS", options={"gtol": 1e-10})
    assert MODEL.mean_field_gap == pytest.approx(found.fun, abs=1e-10)
    assert MODEL.mean_field_gap > 0.1


def test_the_gap_is_the_quadratures_for_one_latent() -> None:
    model = LinearGaussian(RNG.normal(size=(4, 1)), 0.2)
    x = model.sample(10, RNG)
    std = np.full(10, model.precision[0, 0] ** -0.5)
    found = posterior_mismatch(x @ model.encoder.T, std, x, lambda z: z @ model.decoder.T, model.noise_variance)
    np.testing.assert_allclose(found, model.mean_field_gap, atol=1e-9)
    assert model.mean_field_gap == pytest.approx(0, abs=1e-12)


def test_no_rotation_has_a_smaller_gap_than_the_aligned_one() -> None:
    assert MODEL.aligned().mean_field_gap == pytest.approx(0, abs=1e-12)
    assert min(MODEL.rotated(rotation(3, seed)).mean_field_gap for seed in range(20)) > 0


def test_more_weights_close_the_gap() -> None:
    std = np.diag(MODEL.precision) ** -0.5
    noise = np.random.default_rng(2).standard_normal((20, 20_000, 3))
    gaps = [MODEL.importance_gap(std, noise[:samples]) for samples in (1, 5, 20)]
    # One weight is the ELBO; its mean over draws is known up to their standard error.
    weights = [MODEL.importance_gap(std, noise[:1, i : i + 1]) for i in range(2000)]
    assert gaps[0] == pytest.approx(MODEL.mean_field_gap, abs=4 * np.std(weights) / np.sqrt(20_000))
    assert gaps[0] > gaps[1] > gaps[2] > 0
    # The exact posterior as q has no gap, draw by draw.
    aligned = MODEL.aligned()
    assert aligned.importance_gap(np.diag(aligned.precision) ** -0.5, noise) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("degrees", [0.0, 12.5, 45.0])
def test_the_angle_between_latents_is_found_whatever_their_order_and_signs(degrees: float) -> None:
    aligned = LinearGaussian(np.linalg.qr(RNG.normal(size=(5, 2)))[0] * [2.0, 0.5], 0.1)
    turned = aligned.rotated(disentanglement.turned(degrees))
    for swap in (np.eye(2), np.array([[0.0, -1.0], [1.0, 0.0]]), np.diag([1.0, -1.0])):
        assert disentanglement.angle_of(turned.rotated(swap), aligned) == pytest.approx(degrees, abs=1e-5)


def test_recovery_is_the_correlation_of_codes_and_latents() -> None:
    z = np.random.default_rng(3).standard_normal((400_000, 3))
    x = z @ MODEL.decoder.T + np.sqrt(MODEL.noise_variance) * np.random.default_rng(4).standard_normal((len(z), 5))
    correlations = np.abs(np.corrcoef((x @ MODEL.encoder.T).T, z.T)[:3, 3:])
    assert disentanglement.recovery(MODEL.encoder, MODEL) == pytest.approx(correlations.max(0).mean(), abs=0.01)


def test_a_stack_begins_at_the_truth_and_its_elbo_falls_short_by_the_gap() -> None:
    truth = LinearGaussian(np.linalg.qr(RNG.normal(size=(5, 2)))[0] * [2.0, 0.5], 0.1).rotated(
        disentanglement.turned(30.0)
    )
    stack = toy_vaes.StackedVAE(5, 2, (0, 1), truth.noise_variance, hidden=(), dtype=torch.float64)
    disentanglement.begin_at(stack, [False, True], truth)
    rows = truth.sample(50, RNG)
    log_p = multivariate_normal(np.zeros(5), truth.covariance).logpdf(rows)
    # Mean-field E_q log p(x | z) is exact on ± √k of q's deviations along each axis.
    noise = torch.from_numpy(np.sqrt(2) * np.concatenate([np.eye(2), -np.eye(2)]))[:, None, None]
    elbo = stack.bound(torch.from_numpy(rows), noise.expand(4, 2, 50, 2), iwae=False)[1]
    np.testing.assert_allclose(elbo.detach().numpy(), log_p - truth.mean_field_gap, atol=1e-9)
