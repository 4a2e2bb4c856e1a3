"""Bounds, importance sampling and negatives against models whose likelihood is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone

from offmanifold import VAE, NegativeVAE, SemiSupervisedVAE
from offmanifold.detectors.labels import LabelPosterior, Labels, read
from offmanifold.detectors.training_bounds import settled
from offmanifold.detectors.variational_autoencoder import Draws, VariationalAutoencoder
from offmanifold.probability import bounds
from offmanifold.probability.likelihoods import Gaussian

WEIGHTS = torch.tensor([[1.0, 0.5], [0.0, 1.0], [-0.5, 0.3]], dtype=torch.float64)
GAMMA = 0.3


class _Encoder(torch.nn.Module):
    """The exact posterior of x = W z + ε, its mean shifted and its deviation scaled."""

    def __init__(self, shift: float, scale: float) -> None:
        super().__init__()
        precision = torch.eye(2, dtype=torch.float64) + WEIGHTS.T @ WEIGHTS / GAMMA
        self.gain = torch.linalg.solve(precision, WEIGHTS.T / GAMMA)
        self.log_std = (scale * torch.linalg.inv(precision).diagonal().sqrt()).log()
        self.shift = shift

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        mean = rows @ self.gain.T + self.shift
        return torch.cat([mean, self.log_std.expand(len(rows), -1)], 1)


class _Decoder(torch.nn.Module):
    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return codes @ WEIGHTS.T


def _linear(shift: float = 0.2, scale: float = 1.3) -> VariationalAutoencoder:
    model = VariationalAutoencoder(_Encoder(shift, scale), _Decoder(), Gaussian((3,), GAMMA), 2, 4).double()
    return model.eval()


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _exact(rows: torch.Tensor) -> np.ndarray:
    covariance = (WEIGHTS @ WEIGHTS.T + GAMMA * torch.eye(3, dtype=torch.float64)).numpy()
    return np.asarray(multivariate_normal(np.zeros(3), covariance).logpdf(rows.numpy()))


def _noise(samples: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_eubo_is_the_iwae_bound_and_what_the_weights_lack_of_uniform() -> None:
    log_weights = 3 * torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normalised = torch.softmax(log_weights, 0)
    from_uniform = (normalised * (normalised * 7).log()).sum(0)
    upper = bounds.eubo(log_weights)
    torch.testing.assert_close(upper, bounds.iwae(log_weights) + from_uniform)
    assert bool((upper >= bounds.iwae(log_weights)).all())
    torch.testing.assert_close(bounds.eubo(log_weights[:1]), log_weights[0])
    # Weights that all underflow, and one that dwarfs the others, stay finite.
    assert torch.isfinite(bounds.eubo(log_weights.float() - 1e5)).all()
    assert torch.isfinite(bounds.eubo(torch.tensor([[0.0], [-1e30]]))).all()


def test_bounds_enclose_the_likelihood_of_a_linear_model(rows: torch.Tensor) -> None:
    exact, model = _exact(rows), _linear()
    means = {}
    for samples, repeats in ((1, 2000), (10, 2000), (1000, 100)):
        runs = [model.draws(rows, _noise(samples, len(rows), seed)) for seed in range(repeats)]
        means[samples] = {
            name: np.mean([getattr(bounds, name)(run.log_weights).numpy() for run in runs], 0)
            for name in ("iwae", "eubo")
        }
    assert (means[1]["iwae"] < means[10]["iwae"]).all() and (means[10]["iwae"] < exact).all()
    np.testing.assert_allclose(means[1000]["iwae"], exact, atol=0.01)
    # E_{p(z | x)} log w in closed form: log p(x) + KL(p(z | x) ‖ q), which the estimate reaches from below.
    precision = torch.eye(2, dtype=torch.float64) + WEIGHTS.T @ WEIGHTS / GAMMA
    covariance = torch.linalg.inv(precision)
    variance = (2 * model.encoder.log_std).exp()
    gap = 0.5 * ((covariance.diagonal() + 0.2**2) / variance).sum() - 1
    gap = gap + 0.5 * (variance.log().sum() - torch.logdet(covariance))
    assert (means[1000]["eubo"] > exact).all()
    np.testing.assert_allclose(means[1000]["eubo"], exact + float(gap), atol=0.05)


def test_draws_decoded_together_are_those_decoded_one_by_one(rows: torch.Tensor) -> None:
    model = _linear()
    noise = model.scoring_noise[:, None].expand(-1, len(rows), -1)
    together, scored = model.draws(rows, noise), model.scored(rows)
    torch.testing.assert_close(together.log_weights, scored.log_weights)
    torch.testing.assert_close(together.kl, scored.kl)


@pytest.fixture(scope="module")
def line() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 1)) * [[1.0, 2.0, -1.0]] + 0.1 * rng.normal(size=(400, 3))


def test_importance_sampling_rises_to_the_likelihood_and_the_posterior(line: np.ndarray) -> None:
    detector = VAE(latent_dim=1, steps=200, random_state=0, verbose=False).fit(line)
    few, many = (detector.log_likelihood(line[:20], samples=samples) for samples in (1, 2000))
    assert many.mean() > few.mean()
    assert detector.scores(line[:20])["elbo"].mean() < many.mean()
    # Against quadrature over the one latent.
    model = detector.module_
    grid = torch.linspace(-8, 8, 4001)[:, None]
    prepared = torch.from_numpy(detector.prepared(line[:3])).float()
    with torch.no_grad():
        decoded = model.decoder(grid)
        joint = torch.stack([model.likelihood.log_prob(row.expand(len(grid), -1), decoded) for row in prepared])
    joint = joint.double() - 0.5 * grid[:, 0].double() ** 2 - 0.5 * math.log(2 * math.pi)
    exact = torch.logsumexp(joint, 1) + math.log(16 / 4000)
    np.testing.assert_allclose(many[:3], exact.numpy(), atol=0.05)
    codes = detector.posterior_samples(line[:3], 4000, samples=20_000)
    assert codes.shape == (3, 4000, 1)
    weights = torch.softmax(joint, 1).numpy()
    mean = weights @ grid[:, 0].numpy()
    spread = np.sqrt(weights @ grid[:, 0].numpy() ** 2 - mean**2)
    np.testing.assert_allclose(codes.mean((1, 2)), mean, atol=5 * spread.max() / math.sqrt(2000))


def test_lagging_ends_when_the_losses_have_settled() -> None:
    enough = settled(0.1, 2, dimensions=10)
    assert not enough([1.0, 1.0, 0.9])
    assert not enough([1.0, 1.0, 0.9, 0.9])  # fell by 0.1 a dimension, one nat a row
    assert enough([1.0, 1.0, 0.9, 0.9, 0.895, 0.895])
    assert enough([1.0, 1.0, 1.2, 1.2])


def test_lagging_trains_the_encoder_more_than_the_decoder(line: np.ndarray) -> None:
    detector = VAE(steps=20, lagging=(0.1, 3), random_state=0, verbose=False).fit(line)
    assert detector.history_[-1]["repeats"] >= 6


@pytest.mark.parametrize("kind", ["vae", "labels", "negatives"])
def test_continuation_falls_by_a_hundredth_a_step_whatever_else_a_step_does(kind: str, line: np.ndarray) -> None:
    """γ follows the errors in what trains the decoder, and there once: not with the encoder alone, or part by part."""
    own: dict[str, Any] = {"gamma": "continuation", "steps": 20, "random_state": 0, "verbose": False}
    detector: Any
    if kind == "vae":
        detector = VAE(lagging=(0.1, 5), **own).fit(line)
        assert detector.history_[-1]["repeats"] >= 10
    elif kind == "labels":
        detector = SemiSupervisedVAE(lagging=(0.1, 2), **own)
        detector.fit(line, np.where(np.arange(len(line)) % 2, line[:, 0] > 0, -1.0))
    else:
        detector = NegativeVAE(negatives="random", **own).fit(line)
        model, rows = detector.module_.train(), torch.from_numpy(detector.prepared(line[:50])).float()
        with torch.no_grad():
            model.likelihood.log_gamma.fill_(2.0)
            of_encoder, of_decoder = detector._phases(model, detector.settings_)[0].updates
            found = []
            for update in (of_encoder, of_decoder):
                update.loss(rows, torch.Generator().manual_seed(0))
                found.append(float(model.likelihood.log_gamma))
        assert found == pytest.approx([2.0, 2.0 + math.log(0.99)], abs=1e-6)
        return
    assert float(detector.gamma_) >= 0.999 * 0.99**20 * detector.settings_["gamma_start"]


def test_a_bernoulli_vae_finds_no_cell_normal_that_lies_outside() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.random((600, 6)) < 0.9).astype(float)
    detector = VAE(likelihood="bernoulli", scale=None, steps=200, random_state=0, verbose=False).fit(rows)
    moved = np.ones((5, 6))
    for cells in ([1.0, 1.2, 2.0, 50.0, 1e4], [0.0, -0.2, -1.0, -5.0, -1e4]):
        moved[:, 0] = cells
        assert (np.diff(detector.score_samples(moved)) < 0).all()
        assert (detector.p_values(moved)[2:] < 0.01).all()
        told = detector.explain(moved[2:])
        assert (told.contributions.argmin(1) == 0).all()


def test_bits_per_dimension_are_of_log_likelihoods_alone(digits: Any) -> None:
    own: dict[str, Any] = {"steps": 3, "random_state": 0, "verbose": False}
    images = digits[0][:60]
    for score in ("kl", "reconstruction"):
        detector = VAE(score_by=score, **own).fit(images)
        with pytest.raises(ValueError, match=f"score_by='{score}' is one term of a bound and no log-likelihood"):
            detector.bits_per_dim(images)
    bernoulli = VAE(likelihood="bernoulli", **own).fit(images)
    expected = -bernoulli.score_samples(images) / (64 * math.log(2))
    np.testing.assert_allclose(bernoulli.bits_per_dim(images), expected)
    with pytest.raises(ValueError, match="likelihood='bernoulli' is no density"):
        bernoulli.bits_per_dim(images, discrete_pixels=True)
    gaussian = VAE(score_by="iwae", **own).fit(images)
    np.testing.assert_allclose(gaussian.bits_per_dim(images, discrete_pixels=True), gaussian.bits_per_dim(images) + 8)


def test_lagging_has_an_end(line: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"lagging\[1\] must be at most 50; got 51"):
        VAE(lagging=(0.1, 51), verbose=False).fit(line)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_the_gap_of_labels_counts_too(kind: str, line: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    y = np.where(np.arange(len(line)) < len(line) // 2, line[:, 0] > 0 if kind == "discrete" else line[:, 0], -1.0)
    detector = SemiSupervisedVAE(labels=kind, steps=200, random_state=0, verbose=False).fit(line, y)
    gaps = detector.posterior_gaps(line)
    # Of 300 rows scored by eight draws that all share the ELBO is off by as much as the gap is.
    many = clone(detector).set_params(samples=1000).fit(line, y)
    expected = detector.log_likelihood(line) - many.scores(line)["elbo"]
    assert gaps.mean() == pytest.approx(expected.mean(), abs=0.1)
    assert gaps.min() > -1e-6  # by Jensen's inequality, for both bounds are of the same draws
    assert detector.posterior_gaps(line, samples=10, most_rows=7).shape == (7,)
    # Whatever scores are computed from.
    few = clone(detector).set_params(samples=1).fit(line, y)
    np.testing.assert_allclose(few.posterior_gaps(line), gaps, atol=1e-5)
    if kind == "discrete":  # continuous labels are drawn like codes
        monkeypatch.setattr(Draws, "elbo", property(lambda draws: draws.log_weights.mean(0)))
        of_codes_alone = detector.posterior_gaps(line)
        assert gaps.mean() > of_codes_alone.mean() + 0.1


def test_negatives_start_at_the_divergence_of_the_papers_priors(digits: Any) -> None:
    """320 nats with ten latents and a shift of 8, 31 250 with a hundred and 25, in float32 (P1)."""
    for latent_dim, shift, expected in ((10, 8.0, 320.0), (100, 25.0, 31_250.0)):
        detector = NegativeVAE(latent_dim=latent_dim, shift=shift, negatives="random", steps=1, verbose=False)
        detector.fit(digits[0][:60])
        model, settings = detector.module_, detector.settings_
        for parameter in model.encoder.parameters():
            torch.nn.init.zeros_(parameter)  # every row at the prior of normal ones
        phase = detector._phases(model, settings)[0]
        rows = torch.from_numpy(digits[0][:8, None].astype(np.float32))
        generator = torch.Generator().manual_seed(0)
        with_negatives = phase.updates[0].loss(rows, generator)[0]
        plain = phase.updates[1].loss(rows, torch.Generator().manual_seed(0))[0]
        found = (with_negatives - plain) * rows[0].numel()
        torch.testing.assert_close(found, torch.full((8,), expected), rtol=1e-4, atol=0.05)


@pytest.mark.parametrize(("source", "moved"), [("adversarial", True), ("random", False)])
def test_what_each_update_moves(digits: Any, source: str, moved: bool) -> None:
    """The decoder's adversarial term reaches the decoder; the encoder's own never does (P1 §III-D)."""
    detector = NegativeVAE(latent_dim=3, negatives=source, steps=1, verbose=False, random_state=0).fit(digits[0][:60])
    model = detector.module_.requires_grad_(True)
    encoder, decoder = detector._phases(model, detector.settings_)[0].updates
    assert {group.name for group in encoder.groups} == {"encoder"}
    assert {group.name for group in decoder.groups} == {"decoder", "gamma"}
    rows = torch.from_numpy(digits[0][:8, None].astype(np.float32))
    weights = list(model.decoder.parameters())

    def gradient(update: Any, negatives: dict[str, float]) -> torch.Tensor:
        settings = detector.settings_ | {"negatives": negatives}
        update = detector._phases(model, settings)[0].updates[0 if update is encoder else 1]
        loss = update.loss(rows, torch.Generator().manual_seed(0))[0].mean()
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])

    light, heavy = {source: 1e-9}, {source: 1.0}
    # Through the samples that the encoder sees, the decoder learns nothing.
    torch.testing.assert_close(gradient(encoder, light), gradient(encoder, heavy))
    same = torch.allclose(gradient(decoder, light), gradient(decoder, heavy))
    assert same != moved


def test_a_discrete_label_is_summed_over_exactly() -> None:
    """The unlabelled bound with y summed agrees with its estimate from drawn labels; both stay below log p."""
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=400)
    table = np.column_stack([3.0 * (kind - 1), rng.normal(size=400)]) + 0.3 * rng.normal(size=(400, 2))
    y = np.where(rng.uniform(size=400) < 0.3, kind, -1)
    detector = SemiSupervisedVAE(latent_dim=1, steps=150, samples=64, random_state=0, verbose=False).fit(table, y)
    model = detector.module_
    rows = torch.from_numpy(detector.prepared(table[:10])).float()
    with torch.no_grad():
        exact = -sum(detector._energy_terms(model, rows).values()).double()
        mean, log_std = model.posterior(rows)
        posterior = model.label_posterior(rows)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.multinomial(posterior.log_q.exp(), 4000, replacement=True, generator=generator).T
        told = torch.eye(3)[drawn]
        noise = torch.randn(4000, 10, 1, generator=generator)
        codes = mean + log_std.exp() * noise
        estimates = model.likelihoods(rows, codes, told).double()
        kl = model.latent_terms(rows).sum(1).double()
        spread = estimates.std(0) * math.sqrt(1 / 4000 + 1 / 64)
        assert bool(((estimates.mean(0) - kl - exact).abs() < 5 * spread + 1e-3).all())
        # log p(x) by quadrature over z and the sum over y.
        grid = torch.linspace(-8, 8, 2001)[:, None]
        joint = model.by_class(rows, grid[:, None].expand(-1, 10, -1)).double()
        joint = joint + posterior.log_p[:, None].double() - 0.5 * grid[:, :, None].double() ** 2
        log_p = torch.logsumexp(joint.flatten(0, 1), 0) - 0.5 * math.log(2 * math.pi) + math.log(16 / 2000)
    assert bool((exact <= log_p + 5 * spread).all())
    np.testing.assert_allclose(detector.log_likelihood(table[:10], samples=4000), log_p.numpy(), atol=0.1)


def test_relaxed_labels_weigh_the_two_concrete_laws() -> None:
    """E_q[p/q] = 1 for relaxed draws y ~ q, and the closed forms of the divergences match draws."""
    labels = Labels("discrete", (0, 1, 2), (0.5, 0.3, 0.2))
    posterior = LabelPosterior(labels, torch.tensor([[1.0, 0.0, -0.5]], dtype=torch.float64))
    _, ratio = posterior.relaxed(200_000, torch.Generator().manual_seed(0))
    assert abs(float(ratio.exp().mean()) - 1) < 0.02
    kl = float((posterior.log_q.exp() * (posterior.log_q - torch.tensor([0.5, 0.3, 0.2]).double().log())).sum())
    assert float(posterior.kl) == pytest.approx(kl)
    normal = LabelPosterior(Labels("continuous"), torch.tensor([[0.7, -0.4]], dtype=torch.float64))
    drawn, ratio = normal.relaxed(200_000, torch.Generator().manual_seed(0))
    assert float(-ratio.mean()) == pytest.approx(float(normal.kl), abs=0.01)
    assert float(drawn.mean()) == pytest.approx(0.7, abs=0.01)


def test_importance_sampling_completes_rows_as_the_posterior_does() -> None:
    rows = np.random.default_rng(0).normal(size=(100, 3))
    rows[:, 1] = rows[:, 0]
    detector = VAE(latent_dim=1, steps=100, random_state=0, verbose=False).fit(rows)
    gappy = rows[:20].copy()
    gappy[:, 0] = np.nan
    part = next(detector._importance(detector._fitted_rows(gappy), 5, torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(part.mean.numpy(), detector.posterior(gappy)[0], rtol=1e-4, atol=1e-5)


def test_labels_of_every_row_leave_no_part_untrained(line: np.ndarray) -> None:
    """q(z | x) is in the bound of unlabelled rows alone, and rows are scored by it."""
    y = (line[:, 0] > 0).astype(int)
    some = np.where(np.arange(len(line)) % 2, y, -1)
    own: dict[str, Any] = {"steps": 200, "random_state": 0, "verbose": False}
    whole, half = (SemiSupervisedVAE(**own).fit(line, labels) for labels in (y, some))
    fresh = SemiSupervisedVAE(**own | {"steps": 1}).fit(line, y)
    moved = [
        float((a - b).abs().max())
        for a, b in zip(whole.module_.encoder.parameters(), fresh.module_.encoder.parameters(), strict=True)
    ]
    assert min(moved) > 1e-3
    assert whole.scores(line)["elbo"].mean() > half.scores(line)["elbo"].mean() - 0.3
    # And the labels go through fit_predict as well.
    assert (whole.predict(line) == SemiSupervisedVAE(**own).fit_predict(line, y)).all()


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_labels_that_no_row_to_learn_from_has_are_named(kind: str, line: np.ndarray) -> None:
    detector = SemiSupervisedVAE(labels=kind, steps=2, random_state=0, verbose=False)
    *_, training = detector.split(len(line))
    outside = np.setdiff1d(np.arange(len(line)), training)
    y = np.full(len(line), np.nan)
    y[outside] = outside % 2
    told = "'any'" if kind == "continuous" else "0.0, 1.0|0, 1"
    with pytest.warns(UserWarning, match=f"No row to learn from has a label of ({told.strip(chr(39))})"):
        detector.fit(line, y)


def test_numbers_as_labels_come_back_in_their_own_units() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2100, 1))  # three passes
    rows = np.concatenate([z, -z, rng.normal(size=(2100, 1))], 1) + 0.05 * rng.normal(size=(2100, 3))
    y = 1000 + 50 * z[:, 0]
    detector = SemiSupervisedVAE(labels="continuous", steps=600, random_state=0, verbose=False).fit(rows, y)
    told = detector.predict_label(rows)
    assert np.abs(told - y).mean() < 25 and np.corrcoef(told, y)[0, 1] > 0.9
    labels = detector.labels_
    assert labels.one(labels.mean + labels.scale, 2).flatten().tolist() == pytest.approx([1, 1], abs=1e-5)
    # Each row has its own label, in whatever pass it is.
    wanted = np.where(np.arange(2100) % 2, 950.0, 1050.0)
    changed = detector.counterfactual(rows, wanted)
    pieces = [detector.counterfactual(rows[i : i + 100], wanted[i : i + 100]) for i in range(0, 2100, 100)]
    np.testing.assert_allclose(changed, np.concatenate(pieces), rtol=1e-5, atol=1e-5)
    assert (changed[0::2, 0].mean() - changed[1::2, 0].mean()) > 1


def test_a_classes_frequency_is_that_of_the_rows_learned_from() -> None:
    y, training = np.array([0, 0, 0, 1, 1, 1, 1, -1]), np.array([0, 1, 2, 3, 7])
    labels = Labels.learn(y, "discrete", training)
    assert labels.classes == (0, 1) and labels.frequencies == pytest.approx([4 / 6, 2 / 6])
    detector = SemiSupervisedVAE(steps=1, random_state=0, verbose=False).fit(
        np.random.default_rng(0).normal(size=(100, 3)), np.arange(100) % 10 == 0
    )
    drawn = detector._drawn_labels(torch.zeros(20_000, 2), torch.Generator().manual_seed(0)).mean(0)
    wanted = np.array(detector.labels_.frequencies)
    assert np.abs(drawn.numpy() - wanted).max() < 4 * math.sqrt(wanted[0] * wanted[1] / 20_000)


@pytest.mark.parametrize("y", [5, "abc", {"a": 1}])
def test_what_are_no_labels_is_said(y: Any) -> None:
    with pytest.raises(ValueError, match="y must hold a label for each row; got"):
        read(y)
