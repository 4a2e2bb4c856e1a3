"""Measures of the latent space against laws whose information, KL and discrepancy are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import made
from scipy import stats
from sklearn.feature_selection import mutual_info_regression
from sklearn.pipeline import make_pipeline

from offmanifold import AE, IGEBM, VAE
from offmanifold.measures import (
    active_latents,
    aggregate_mmd,
    generalisation_gap,
    kraskov,
    latent_information,
    latent_kl,
    latent_report,
    optimal_gamma,
    reconstruction_error,
)
from offmanifold.measures.estimates import Estimate, difference_of_means, mean_of


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class Known:
    """Codes N(a x + shift, s²) of standard normal columns x: all is known in closed form."""

    latent_prior = "euclidean"

    def __init__(self, slope: Any, std: Any, shift: Any = 0.0) -> None:
        self.slope, self.std, self.shift = (np.asarray(values, dtype=float) for values in (slope, std, shift))

    def posterior(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return X * self.slope + self.shift, np.broadcast_to(self.std, X.shape).copy()

    def prepared(self, X: np.ndarray) -> np.ndarray:
        return X


# --- intervals -----------------------------------------------------------------------------------------


def test_intervals_of_means_are_students_and_welchs(rng: np.random.Generator) -> None:
    one, two = rng.normal(1, 1, 20), rng.normal(0, 3, 50)
    expected = stats.ttest_1samp(one, 0).confidence_interval(0.9)
    found = mean_of(one, level=0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    expected = stats.ttest_ind(one, two, equal_var=False).confidence_interval(0.95)
    found = difference_of_means(one, two)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert mean_of([3.0]) == Estimate(3.0, -math.inf, math.inf)
    assert difference_of_means([3.0], [1.0, 2.0]).low == -np.inf
    assert difference_of_means([3.0, 3.0], [1.0, 1.0]).high == 2.0


# --- information ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_kraskov_on_gaussians(rng: np.random.Generator, correlation: float) -> None:
    x, noise = rng.normal(size=(2, 2000))
    y = correlation * x + (1 - correlation**2) ** 0.5 * noise
    assert kraskov(x, y) == pytest.approx(-0.5 * np.log(1 - correlation**2), abs=0.06)
    # Of a vector with one of its columns' copies, nothing else matters but that column.
    assert kraskov(np.column_stack([x, 0.01 * noise]), y, k=5) == pytest.approx(kraskov(x, y, k=5), abs=0.15)


def test_kraskov_of_a_vector(rng: np.random.Generator) -> None:
    """x = a z + noise in three dimensions: I = ½ log(1 + ‖a‖²/σ²)."""
    slope = np.array([1.0, -2.0, 0.5])
    for variance in (1.0, 5.25, 50.0):
        z = rng.normal(size=2000)
        x = z[:, None] * slope + variance**0.5 * rng.normal(size=(2000, 3))
        # Its bias towards 0 is 0.03 to 0.06 where the information is 0.9.
        assert kraskov(x, z) == pytest.approx(0.5 * np.log(1 + slope @ slope / variance), abs=0.1)
        assert kraskov(z, x) == pytest.approx(kraskov(x, z))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_kraskov_agrees_with_scikit_learn(rng: np.random.Generator, k: int) -> None:
    """It scales columns to variance 1 and adds noise of 10⁻¹⁰; where the columns have variance 1 it is the same."""
    x, noise = rng.normal(size=(2, 500))
    y = np.tanh(2 * x) + 0.3 * noise
    x, y = x / x.std(), y / y.std()
    (expected,) = mutual_info_regression(x[:, None], y, n_neighbors=k, random_state=0)
    assert kraskov(x, y, k=k) == pytest.approx(expected, abs=1e-3)


def test_kraskov_knows_no_units_and_no_ties(rng: np.random.Generator) -> None:
    x, noise = rng.normal(size=(2, 1000))
    y = 0.9 * x + (1 - 0.9**2) ** 0.5 * noise
    for unit in (1e3, 0.01, 1e200, 1e-200):
        assert kraskov(unit * x, y + 7 / max(unit, 0.01)) == pytest.approx(kraskov(x, y), abs=0.02)
    coin, other = rng.integers(2, size=(2, 1000))
    assert kraskov(coin, other) == pytest.approx(0, abs=0.06)
    assert kraskov(coin, coin) == pytest.approx(np.log(2), abs=0.06)
    assert abs(kraskov(np.ones(50), rng.normal(size=50))) < 0.3


def test_kraskov_agrees_with_brute_force(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(40, 2)), rng.normal(size=40)
    x, y = x - x.mean(0), y - y.mean()
    x, y = x / np.sqrt((x**2).sum(1).mean()), y / y.std()
    total = 0.0
    for i in range(40):
        dx, dy = np.linalg.norm(x - x[i], axis=1), np.abs(y - y[i])
        others = np.arange(40) != i
        radius = np.sort(np.maximum(dx, dy)[others])[2]
        counts = [(d[others] < radius).sum() for d in (dx, dy)]
        total += sum(stats_digamma(count + 1) for count in counts)
    assert kraskov(x, y) == pytest.approx(stats_digamma(3) + stats_digamma(40) - total / 40)


def stats_digamma(value: float) -> float:
    from scipy.special import digamma

    return float(digamma(value))


def test_kraskov_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="must be pairs; got 5 and 4 rows"):
        kraskov(np.zeros(5), np.zeros(4))
    with pytest.raises(ValueError, match="k = 3 neighbours need more than 3 rows; got 3"):
        kraskov(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="y must hold finite numbers"):
        kraskov(np.zeros(5), [0, 1, np.nan, 2, 3])


def test_averaged_kl_is_information_plus_misfit(rng: np.random.Generator) -> None:
    """Three latents: one informative and N(0, 1) over all rows, one pruned, one informative but misplaced."""
    X = rng.normal(size=(3000, 3))
    std = np.array([0.3, 1.0, 0.5])
    known = Known([(1 - 0.3**2) ** 0.5, 0.0, 1.0], std, [0.0, 0.0, 1.0])
    information = np.array([-np.log(0.3), 0.0, 0.5 * np.log(1 + 1 / 0.25)])
    variance = np.array([1.0, 1.0, 1.25])
    misfit = 0.5 * (variance + np.array([0, 0, 1.0]) - 1 - np.log(variance))
    found = latent_information(known, X, most_rows=1500)
    order = found.latent
    assert order.tolist() == [2, 0, 1]
    np.testing.assert_allclose(found.kl, (information + misfit)[order], atol=0.08)
    np.testing.assert_allclose(found.kl, latent_kl(known, X), atol=0.08)
    for bound in (found.low, found.high):
        np.testing.assert_allclose(bound, information[order], atol=0.1)
    # Kraskov's estimate is pulled to 0 by the two columns that say nothing.
    np.testing.assert_allclose(found.kraskov, information[order], atol=0.2)
    assert (found.high - found.low > -1e-3).all()
    low, high = found.aggregate_kl
    np.testing.assert_allclose((low + high) / 2, misfit[order], atol=0.1)
    assert active_latents(known, X).tolist() == [2, 0]
    assert active_latents(known, X, threshold=1.26).tolist() == [2]


def test_the_lower_bound_never_exceeds_log_n_and_the_bounds_enclose(rng: np.random.Generator) -> None:
    X = rng.normal(size=(50, 1))
    sharp = Known([1.0], [1e-4])
    found = latent_information(sharp, X)
    assert found.low[0] == pytest.approx(np.log(50), abs=1e-3)
    assert found.high[0] > np.log(1e4) - 3  # the truth is about log 10⁴
    # In expectation: over many draws the bounds lie on both sides of the truth.
    middling, truth = Known([(1 - 0.04) ** 0.5], [0.2]), -np.log(0.2)
    both = np.array([
        [f.low[0], f.high[0]]
        for f in (latent_information(middling, rng.normal(size=(60, 1)), random_state=i) for i in range(60))
    ])  # fmt: skip
    assert both[:, 0].mean() < truth < both[:, 1].mean()


# --- codes against the prior ---------------------------------------------------------------------------


def test_mmd_of_matching_codes_covers_zero_as_often_as_it_says(rng: np.random.Generator) -> None:
    matching = Known([0.6], [0.8])
    covered = 0
    for seed in range(60):
        X = np.random.default_rng(seed).normal(size=(1000, 1))
        found = aggregate_mmd(matching, X, block=50, random_state=seed)
        covered += found.low <= 0 <= found.high
    assert 52 <= covered <= 60  # 57 expected; fewer than 52 would come by chance in one run of 100
    shrunk = aggregate_mmd(Known([0.3], [0.3]), rng.normal(size=(1000, 1)))
    assert shrunk.low > 0.01


def test_every_latent_space_with_a_prior_can_be_compared(plane: Any) -> None:
    settings = {"steps": 60, "hidden": (16,), "random_state": 0, "verbose": False}
    sphere = AE(latent="sphere", latent_dim=3, **settings).fit(plane[0])
    assert aggregate_mmd(sphere, plane[0]).value > 0  # codes of a plane do not fill the sphere
    vae = VAE(**settings).fit(plane[0])
    assert np.isfinite(aggregate_mmd(vae, plane[0], kernel="gaussian").value)
    vae.set_output(transform="pandas")
    assert np.isfinite(aggregate_mmd(vae, plane[0]).value)
    igebm = made(IGEBM).fit(plane[0])
    for measure in (latent_kl, aggregate_mmd):
        with pytest.raises(TypeError, match="IGEBM has no latent codes to measure"):
            measure(igebm, plane[0])
    with pytest.raises(ValueError, match="codes of this AE have no prior"):
        aggregate_mmd(AE(**settings).fit(plane[0]), plane[0])
    with pytest.raises(ValueError, match="at least 4 rows; got 3"):
        aggregate_mmd(vae, plane[0][:3])
    for most in (-1, 0, 3, 10.5):
        with pytest.raises(ValueError, match="most_rows must be an integer of at least 4"):
            aggregate_mmd(vae, plane[0], most_rows=most)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k must be an integer of at least 1; got '3'"):
        latent_information(vae, plane[0], k="3")  # type: ignore[arg-type]
    for measure in (latent_kl, active_latents, latent_information):
        with pytest.raises(TypeError, match="AE has no posterior"):
            measure(sphere, plane[0])
    with pytest.raises(TypeError, match="AE has no decoder variance"):
        optimal_gamma(sphere, plane[0])
    energy = made(IGEBM).fit(plane[0])
    with pytest.raises(TypeError, match=r"IGEBM has no decoder variance\.$"):
        optimal_gamma(energy, plane[0])
    with pytest.raises(TypeError, match="IGEBM reconstructs nothing"):
        reconstruction_error(energy, plane[0])
    with pytest.raises(TypeError, match="latent_report looks at offmanifold's detectors; got Pipeline"):
        latent_report(make_pipeline(sphere), plane[0])


class Codes:
    """A detector whose codes are the rows."""

    latent_prior = "sphere"

    def transform(self, X: Any) -> Any:
        return X


def test_rows_are_chosen_at_random_and_the_bandwidth_is_the_priors(rng: np.random.Generator) -> None:
    """Uniform codes come first and one pole after: the first rows alone would have no discrepancy to show."""
    uniform = rng.normal(size=(1000, 4))
    uniform /= np.linalg.norm(uniform, axis=1, keepdims=True)
    codes = np.concatenate([uniform, np.eye(4)[np.zeros(1000, int)]])
    found, whole = (aggregate_mmd(Codes(), codes, most_rows=most, random_state=1) for most in (1000, 2000))  # type: ignore[arg-type]
    assert found.value == pytest.approx(whole.value, rel=0.3)
    # Half of q is one pole e: MMD² = ¼ (k(e, e) + E k(u, u′) − 2 E k(e, u)), with E‖u − u′‖² = 2 in any dimension.
    kernel = 2 / (2 + ((uniform[:500, None] - uniform[500:]) ** 2).sum(2))
    from_pole = 2 / (2 + ((uniform - np.eye(4)[0]) ** 2).sum(1))
    assert whole.value == pytest.approx((1 + kernel.mean() - 2 * from_pole.mean()) / 4, rel=0.1)


# --- fits ----------------------------------------------------------------------------------------------


def test_a_learned_variance_arrives_at_its_closed_form_and_unused_latents_at_their_prior(
    rng: np.random.Generator,
) -> None:
    """P4 Eq. 6; data of two dimensions in eight, with noise of variance 0.01 (before standardisation)."""
    rows = rng.normal(size=(3000, 2)) @ rng.normal(size=(2, 8)) + 0.1 * rng.normal(size=(3000, 8))
    detector = VAE(gamma="learned", latent_dim=5, scale=None, random_state=0, verbose=False).fit(rows)
    best = optimal_gamma(detector, rows)
    assert float(detector.gamma_) == pytest.approx(best.value, rel=0.05)
    assert best.value == pytest.approx(0.01, rel=0.2)
    # E_q adds the latents' noise to the error at the mean.
    assert reconstruction_error(detector, rows).value < best.value
    report = detector.fit_report_
    assert report["latents"]["active"] == len(active_latents(detector, rows)) == 2
    assert max(report["latents"]["kl"][2:]) < 0.01
    assert report["gamma"]["learned"] == float(detector.gamma_)
    gap = generalisation_gap(detector, rows[:1000], rows[1000:])
    assert gap.low < 0 < gap.high


def test_a_model_that_knows_its_rows_by_heart_shows_a_gap(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(300, 100))
    detector = AE(noise=0.0, latent_dim=64, steps=1000, random_state=0, verbose=False).fit(rows)
    gap = detector.fit_report_["score"]["gap"]
    assert gap["low"] > 0
    calibration, _, training = detector.split(300)
    assert generalisation_gap(detector, rows[training], rows[calibration]).value == pytest.approx(gap["value"])
