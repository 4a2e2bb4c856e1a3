"""Closed forms, brute force and identities, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from sklearn.decomposition import PCA
from torch import Tensor

from offmanifold.data.inputs import InputSpec
from offmanifold.detectors.vae import VAE, VariationalAutoencoder
from offmanifold.networks.network import initialise
from offmanifold.probability import bounds, divergences, grids, latents
from offmanifold.probability.distances import distance, ssim
from offmanifold.probability.likelihoods import Bernoulli, Block, Gaussian, Mixed, gaussian_part
from offmanifold.probability.penalties import PENALTIES, penalised_mean
from offmanifold.training.loop import train

G = torch.Generator


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=G().manual_seed(seed), dtype=torch.float64)


# --- likelihoods ---------------------------------------------------------------------------------------


def mixed() -> tuple[Mixed, Tensor, Tensor]:
    """A number, a category of three levels and room for new ones, a boolean, a lumped category of two levels."""
    blocks = [Block("number", 1), Block("category", 4, 5.0), Block("boolean", 1), Block("category", 2)]
    mean, scale = normal(8).float(), normal(8, seed=1).abs().float() + 0.5
    return Mixed(blocks, mean.tolist(), scale.tolist(), 0.3), mean, scale


def test_mixed_agrees_with_torch_and_sums_to_one() -> None:
    likelihood, mean, scale = mixed()
    decoded = normal(1, 8, seed=2).float()
    total = 0.0
    for first, truth, second in itertools.product(range(3), (0, 1), range(2)):
        raw = torch.zeros(1, 8)
        raw[0, 1 + first] = 1
        raw[0, 5] = truth
        raw[0, 6 + second] = 1
        rows = (raw - mean) / scale
        rows[0, 0] = 0.7
        expected = (
            torch.distributions.Normal(decoded[:, 0], math.sqrt(0.3)).log_prob(torch.tensor(0.7))
            + decoded[:, 1:4].log_softmax(1)[:, first]
            + torch.distributions.Bernoulli(logits=decoded[:, 5]).log_prob(torch.tensor(float(truth)))
            + decoded[:, 6:].log_softmax(1)[:, second]
        )
        found = likelihood.log_prob(rows, decoded)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        cells = likelihood.cells(rows, decoded)
        torch.testing.assert_close(cells.sum(1), found, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cells[:, 1:5].sum(1), decoded[:, 1:4].log_softmax(1)[:, first])
        total += float((found - cells[:, 0]).exp())
        for gone, column in ((slice(0, 1), 0), (slice(1, 5), 1), (slice(5, 6), 5), (slice(6, 8), 6)):
            without = rows.clone()
            without[:, gone] = torch.nan
            left = likelihood.log_prob(without, decoded)
            torch.testing.assert_close(left, found - cells[:, gone].sum(1), rtol=1e-4, atol=1e-4)
            assert (likelihood.cells(without, decoded)[:, column] == 0).all()
    assert total == pytest.approx(1, rel=1e-5)
    new = torch.zeros(1, 8)
    new[0, 4] = new[0, 6] = 1
    assert float(likelihood.cells((new - mean) / scale, decoded)[0, 1:5].sum()) == pytest.approx(-5, rel=1e-4)


def test_mixed_samples_follow_their_probabilities() -> None:
    likelihood, mean, scale = mixed()
    decoded = normal(1, 8, seed=2).float().expand(20_000, -1)
    raw = likelihood.sample(decoded, G().manual_seed(0)) * scale + mean
    torch.testing.assert_close(raw[:, 1:5].sum(1), torch.ones(20_000), rtol=1e-4, atol=1e-4)
    expected = likelihood.mean(decoded[:1])[0] * scale + mean
    torch.testing.assert_close(raw[:, 1:].mean(0), expected[1:], rtol=0, atol=0.015)
    assert float(expected[4]) == pytest.approx(0, abs=1e-6)
    only = Mixed([Block("boolean", 1)], [0.0], [1.0])
    assert only.numbers is None and only.log_prob(torch.ones(2, 1), torch.zeros(2, 1)).tolist() == pytest.approx(
        [-math.log(2)] * 2
    )


def test_gaussian_agrees_with_torch_and_integrates_to_one() -> None:
    likelihood = Gaussian((3,), gamma=0.3).double()
    x, mean = normal(5, 3), normal(5, 3, seed=1)
    expected = torch.distributions.Normal(mean, math.sqrt(0.3)).log_prob(x).sum(1)
    # γ itself is kept in float32 before .double()
    torch.testing.assert_close(likelihood.log_prob(x, mean), expected, rtol=1e-6, atol=1e-6)
    one = Gaussian((1,), gamma=0.04)
    at = torch.zeros(1, 1)
    total, _ = quad(lambda v: float(one.log_prob(torch.tensor([[v]]), at).exp()), -3, 3, points=[0.0])
    assert total == pytest.approx(1, abs=1e-5)


def test_per_dimension_gaussian_agrees_with_torch() -> None:
    likelihood = Gaussian((2, 2), gamma="per-dimension").double()
    with torch.no_grad():
        likelihood.log_gamma.copy_(normal(2, 2, seed=4))
    x, mean = normal(5, 2, 2), normal(5, 2, 2, seed=1)
    std = (0.5 * likelihood.log_variance).exp()
    expected = torch.distributions.Normal(mean, std).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.log_prob(x, mean), expected)


def test_bernoulli_agrees_with_torch_and_sums_to_one() -> None:
    logits = normal(1, 3)
    outcomes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    log_probs = Bernoulli().log_prob(outcomes, logits.expand(8, 3))
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(outcomes).sum(1)
    torch.testing.assert_close(log_probs, expected)
    assert log_probs.exp().sum().item() == pytest.approx(1)


def test_a_bernoulli_cell_costs_more_the_farther_it_lies_outside() -> None:
    logits = normal(1, 3).expand(9, 3)
    at = torch.tensor([-5.0, -1.0, -0.01, 0.0, 0.3, 1.0, 1.01, 2.0, 50.0], dtype=torch.float64)
    rows = torch.full((9, 3), 0.5, dtype=torch.float64)
    for cell in range(3):
        moved = rows.clone()
        moved[:, cell] = at
        found = Bernoulli().log_prob(moved, logits)
        assert bool((found[:4].diff() > 0).all()) and bool((found[5:].diff() < 0).all())
        within = torch.nn.functional.binary_cross_entropy_with_logits(logits, moved, reduction="none")
        assert torch.equal(found[3:6], -within.sum(1)[3:6])  # to the last bit
        cells = Bernoulli().cells(moved, logits)
        torch.testing.assert_close(cells[0, cell], cells[3, cell] - 500)
        moved[:, cell] = torch.nan
        assert bool((Bernoulli().cells(moved, logits)[:, cell] == 0).all())


def test_gamma_follows_the_parts_of_a_step_as_the_whole() -> None:
    x, mean = normal(50, 4), normal(50, 4, seed=1)
    for rule in ("closed-form", "continuation"):
        whole, parts, none = (Gaussian((4,), gamma=rule, start=9.0).double().train() for _ in range(3))
        before = none.gamma.item()
        whole.log_prob(x, mean)
        for share in (0.25, 0.75):
            parts.log_prob(x, mean, learning=share)
        none.log_prob(x, mean, learning=0)
        assert parts.gamma.item() == pytest.approx(whole.gamma.item(), rel=1e-6)
        assert whole.gamma.item() < before == none.gamma.item()
        if rule == "continuation":
            assert whole.gamma.item() == pytest.approx(0.99 * before, rel=1e-6)
    mixed = Mixed([Block("number", 4)], [0.0] * 4, [1.0] * 4, "closed-form").double().train()
    mixed.log_prob(x, mean, learning=0)
    assert gaussian_part(mixed).gamma.item() == 1  # type: ignore[union-attr]


def test_the_optimal_variance_is_the_mean_squared_error() -> None:
    """P0/P4: γ* = mean squared error over rows and dimensions; the learned γ's gradient vanishes there."""
    x, mean = normal(50, 4), normal(50, 4, seed=1)
    best = (x - mean).square().mean()
    likelihood = Gaussian((4,), gamma="learned", floor=1e-12).double()
    with torch.no_grad():
        likelihood.log_gamma.fill_(best.log())
    (slope,) = torch.autograd.grad(likelihood.log_prob(x, mean).mean(), likelihood.log_gamma)
    assert abs(slope.item()) < 1e-6
    closed = Gaussian((4,), gamma="closed-form").double().train()
    for _ in range(400):
        closed.log_prob(x, mean)
    assert closed.gamma.item() == pytest.approx(best.item(), rel=1e-5)
    before = closed.gamma.item()
    closed.eval().log_prob(x, mean + 9)
    assert closed.gamma.item() == before


def test_the_floor_holds_is_reported_and_can_be_left_again() -> None:
    likelihood = Gaussian((4,), gamma="learned", floor=1e-3)
    assert not likelihood.touches_floor
    with torch.no_grad():
        likelihood.log_gamma.fill_(-12.0)
    assert likelihood.gamma.item() == pytest.approx(1e-3, rel=0.01)
    assert likelihood.touches_floor
    rows = torch.ones(2, 4)
    (slope,) = torch.autograd.grad(-likelihood.log_prob(rows, torch.zeros(2, 4)).mean(), likelihood.log_gamma)
    assert slope.item() < 0  # descending raises γ: the floor is no trap


def test_samples_have_the_stated_variance() -> None:
    draws = Gaussian((1,), gamma=0.25).sample(torch.zeros(200_000, 1), G().manual_seed(0))
    assert draws.var().item() == pytest.approx(0.25, rel=0.02)


# --- divergences ---------------------------------------------------------------------------------------


def test_kl_closed_forms_agree_with_monte_carlo_and_each_other() -> None:
    mean, log_std = torch.tensor([[0.7, -1.0]]).double(), torch.tensor([[-0.5, 0.3]]).double()
    z = mean + log_std.exp() * normal(400_000, 2)
    q = torch.distributions.Normal(mean, log_std.exp())
    to_standard = (q.log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z)).mean(0)
    closed = divergences.kl_to_standard_normal(mean, log_std)[0]
    torch.testing.assert_close(closed, to_standard, atol=0.01, rtol=0)
    zeros = torch.zeros_like(mean)
    torch.testing.assert_close(divergences.kl_between_normals(mean, log_std, zeros, zeros)[0], closed)
    other_mean, other_log_std = zeros + 8, zeros + 0.2
    other = torch.distributions.Normal(other_mean, other_log_std.exp())
    between = divergences.kl_between_normals(mean, log_std, other_mean, other_log_std)
    torch.testing.assert_close(between, torch.distributions.kl_divergence(q, other))
    # P1: against N(8·1, I), ten latents at the prior start at 320 nats.
    start = divergences.kl_between_normals(torch.zeros(10), torch.zeros(10), torch.full((10,), 8.0), torch.zeros(10))
    assert start.sum().item() == 320


@pytest.mark.parametrize("kernel", divergences.KERNELS)
def test_mmd_agrees_with_brute_force(kernel: str) -> None:
    x, y = normal(6, 2).numpy(), normal(9, 2, seed=1).numpy() + 0.5
    pooled = np.concatenate([x, y])
    pairs = [np.linalg.norm(a - b) for a, b in itertools.combinations(pooled, 2)]
    h = sorted(pairs)[(len(pairs) - 1) // 2]  # torch's median is the lower one

    def k(a: np.ndarray, b: np.ndarray) -> float:
        d2 = float(((a - b) ** 2).sum())
        return math.exp(-d2 / (2 * h * h)) if kernel == "gaussian" else h * h / (h * h + d2)

    def within(s: np.ndarray) -> float:
        return sum(k(s[i], s[j]) for i, j in itertools.permutations(range(len(s)), 2)) / (len(s) * (len(s) - 1))

    expected = within(x) + within(y) - 2 * np.mean([[k(a, b) for b in y] for a in x])
    found = divergences.mmd(torch.from_numpy(x), torch.from_numpy(y), kernel=kernel)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_mmd_is_unbiased() -> None:
    values = [
        divergences.mmd(normal(20, 2, seed=2 * s), normal(20, 2, seed=2 * s + 1), bandwidth=1.0).item()
        for s in range(300)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0 < divergences.mmd(normal(50, 2), normal(50, 2, seed=1) + 2).item()


# --- bounds --------------------------------------------------------------------------------------------


def linear_model(x: Tensor, samples: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """ELBO, log-weights and exact log p(x) of x = Wz + b + √γ ε under a posterior that is somewhat off."""
    d, k, gamma = 4, 2, 0.3
    weights, bias = normal(d, k, seed=10), normal(d, seed=11)
    likelihood = Gaussian((d,), gamma=gamma).double()
    precision = weights.T @ weights / gamma + torch.eye(k)
    exact_mean = (x - bias) @ weights / gamma @ torch.linalg.inv(precision)
    mean = exact_mean + 0.2
    log_std = 0.5 * torch.linalg.inv(precision).diagonal().log().expand_as(mean) + 0.3
    noise = normal(samples, *mean.shape, seed=seed)
    codes = mean + log_std.exp() * noise
    log_likelihoods = torch.stack([likelihood.log_prob(x, z @ weights.T + bias) for z in codes])
    kl = divergences.kl_to_standard_normal(mean, log_std).sum(1)
    log_weights = bounds.gaussian_log_weights(log_likelihoods, codes, noise, log_std)
    covariance = weights @ weights.T + gamma * torch.eye(d)
    exact = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
    return bounds.elbo(log_likelihoods, kl), log_weights, exact


def test_iwae_rises_from_the_elbo_to_the_likelihood() -> None:
    x = normal(40, 4, seed=3)
    elbo, log_weights, exact = linear_model(x, 5, 0)
    iwae_5 = bounds.iwae(log_weights)
    many_elbo, log_weights, _ = linear_model(x, 10_000, 1)
    iwae_many = bounds.iwae(log_weights)
    assert many_elbo.mean() < iwae_5.mean() + 0.05 < exact.mean() + 0.05
    assert (many_elbo < exact).all()
    torch.testing.assert_close(iwae_many, exact, atol=0.03, rtol=0)
    assert elbo.shape == iwae_5.shape == (40,)


def test_iwae_of_one_sample_is_the_elbo_in_expectation() -> None:
    x = normal(3, 4, seed=3)
    _, log_weights, _ = linear_model(x, 4000, 4)
    single = torch.stack([bounds.iwae(one[None]) for one in log_weights])
    elbo, _, _ = linear_model(x, 20_000, 5)
    error = single.std(0) / 4000**0.5
    assert ((single.mean(0) - elbo).abs() < 5 * error).all()


def test_beta_and_bits() -> None:
    log_likelihood, kl = torch.tensor([-10.0]), torch.tensor([2.0])
    assert bounds.elbo(log_likelihood, kl, beta=3.0).item() == -16
    nats = torch.tensor([-784 * math.log(2)])
    assert bounds.bits_per_dim(nats, 784).item() == pytest.approx(1)
    assert bounds.bits_per_dim(nats, 784, discrete_pixels=True).item() == pytest.approx(9)


def test_a_linear_gaussian_vae_is_probabilistic_pca() -> None:
    """At its optimum: γ is the mean of the dropped eigenvalues, the ELBO is tight, the subspace PCA's."""
    rng = np.random.default_rng(0)
    d, k, n = 6, 2, 1000
    rows = rng.normal(size=(n, k)) @ rng.normal(size=(k, d)) * 1.5 + 0.6 * rng.normal(size=(n, d)) + 1.0
    detector = VAE(
        latent_dim=2, hidden=(), gamma="learned", score_by="elbo", steps=2000, batch_size=1000,
        learning_rate=0.1, optimizer="adam", schedule="cosine", samples=1,
    )  # fmt: skip
    spec = InputSpec("table", (d,), "columns")
    settings = detector._resolved(spec, n)
    model = detector._build(spec, settings)
    assert isinstance(model, VariationalAutoencoder)
    initialise(model, G().manual_seed(0))
    data = torch.from_numpy(rows).float()
    train(model, detector._phases(model, settings), data, data, seed=0)
    exact = PCA(n_components=2).fit(rows)
    gamma = model.likelihood.gamma.item()
    assert gamma == pytest.approx(exact.noise_variance_, rel=0.01)
    with torch.no_grad():
        mean, log_std = model.posterior(data)
        decoder = model.decoder.body[0].weight.double()
        # E_q of a linear decoder's log-likelihood in closed form: that at the mean, less what the noise adds.
        added = (2 * log_std.double()).exp() @ decoder.square().sum(0) / (2 * gamma)
        log_likelihood = model.likelihood.log_prob(data, model.decoder(mean)) - added
        elbo = bounds.elbo(log_likelihood, divergences.kl_to_standard_normal(mean, log_std).sum(1))
    expected = exact.score_samples(rows)
    # The posterior's covariance is diagonal: with the rotation left free, the bound is tight.
    assert np.abs(elbo.numpy() - expected).mean() < 0.05
    assert abs(elbo.mean().item() - expected.mean()) < 0.02
    basis = torch.linalg.qr(decoder)[0].numpy()
    signal = exact.components_
    np.testing.assert_allclose(np.linalg.norm(signal @ basis, axis=1), 1, atol=0.01)


# --- latents, distances, penalties ---------------------------------------------------------------------


def test_sphere_codes_have_unit_length_and_no_preferred_direction() -> None:
    codes = latents.prior_sample(50_000, 3, "sphere", G().manual_seed(0), torch.device("cpu"))
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(50_000))
    assert codes.mean(0).abs().max() < 0.02
    assert (codes.square().mean(0) - 1 / 3).abs().max() < 0.01


def test_ssim_agrees_with_a_window_by_window_loop() -> None:
    x, y = (torch.rand(2, 1, 10, 9, generator=G().manual_seed(s), dtype=torch.float64) for s in (0, 1))
    expected = []
    for a, b in zip(x.numpy()[:, 0], y.numpy()[:, 0], strict=True):
        values = []
        for i, j in itertools.product(range(4), range(3)):
            p, q = a[i : i + 7, j : j + 7].ravel(), b[i : i + 7, j : j + 7].ravel()
            c = np.cov(p, q)
            values.append(
                (2 * p.mean() * q.mean() + 1e-4) * (2 * c[0, 1] + 9e-4)
                / ((p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (c[0, 0] + c[1, 1] + 9e-4))
            )  # fmt: skip
        expected.append(np.mean(values))
    np.testing.assert_allclose(ssim(x, y).numpy(), expected)
    np.testing.assert_allclose(distance(x, x, "ssim").numpy(), 0, atol=1e-12)
    assert distance(x, y, "squared")[0].item() == pytest.approx(((x[0] - y[0]) ** 2).mean().item())
    assert distance(x, y, "l1")[0].item() == pytest.approx((x[0] - y[0]).abs().mean().item())


@pytest.mark.parametrize("penalty", sorted(PENALTIES))
def test_per_row_penalties_have_the_value_and_gradient_of_the_penalised_mean(penalty: str) -> None:
    """P4 Eq. 7: g of a mean over rows, in per-row losses."""
    values = (normal(8, 3).square() + 0.1).requires_grad_()
    rows = penalised_mean(values, penalty)
    assert rows.shape == values.shape
    direct = PENALTIES[penalty](values.mean(0)).sum()
    assert rows.mean(0).sum().item() == pytest.approx(direct.item())
    (found,) = torch.autograd.grad(rows.mean(0).sum(), values)
    (expected,) = torch.autograd.grad(direct, values)
    torch.testing.assert_close(found, expected)


def test_a_density_integrates_to_one_on_the_grid() -> None:
    points, area = grids.midpoints(((-6.0, 7.0), (-5.0, 5.0)), 200)
    assert points.shape == (40_000, 2) and area == pytest.approx(13 * 10 / 40_000)
    assert (np.diff(points[:200, 0]) == 0).all() and (np.diff(points[:200, 1]) > 0).all()
    log_p = -0.5 * ((points - [0.5, 0.0]) ** 2).sum(1)
    assert grids.log_integral(log_p, area) == pytest.approx(math.log(2 * math.pi), abs=1e-5)


@pytest.mark.parametrize("rule", [0.3, "learned", "per-dimension", "closed-form"])
def test_a_gaussian_of_rows_with_gaps_is_that_of_the_cells_seen(rule: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, mean = torch.randn(6, 3, generator=generator), torch.randn(6, 3, generator=generator)
    x[:, 1] = torch.nan
    whole, part = Gaussian((3,), rule, start=0.5).eval(), Gaussian((2,), rule, start=0.5).eval()
    torch.testing.assert_close(whole.log_prob(x, mean), part.log_prob(x[:, [0, 2]], mean[:, [0, 2]]))
    torch.testing.assert_close(whole.cells(x, mean).sum(1), whole.log_prob(x, mean))


def test_gamma_in_closed_form_is_the_mean_over_cells_seen() -> None:
    """A row of which nothing is seen is no error of zero, and from such rows alone nothing is learned."""
    generator = torch.Generator().manual_seed(0)
    x, mean = torch.randn(6, 3, generator=generator), torch.randn(6, 3, generator=generator)
    x[:, 1], x[0, 0], x[1:3] = torch.nan, torch.nan, torch.nan
    gaussian = Gaussian((3,), "closed-form").train()
    for _ in range(400):
        gaussian.log_prob(x, mean)
    found = gaussian.gamma.item()
    assert found == pytest.approx((x - mean)[~x.isnan()].square().mean().item(), rel=1e-4)
    gaussian.log_prob(x[1:3], mean[1:3])
    assert gaussian.gamma.item() == found


def test_a_cell_between_levels_has_the_mean_of_their_log_probabilities() -> None:
    mixed, logits = Mixed([Block("category", 3)], [0.0] * 3, [1.0] * 3), torch.tensor([[0.5, -1.0, 2.0]])
    for scale in (0.25, 0.5):  # completed ones need not sum to one
        found = mixed.log_prob(scale * torch.tensor([[1.0, 1.0, 0.0]]), logits)
        torch.testing.assert_close(found, logits.log_softmax(1)[:, :2].mean(1))
