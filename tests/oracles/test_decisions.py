"""Conformal p-values, thresholds, false discoveries, and detection measures, against brute force."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, norm
from sklearn.metrics import average_precision_score, roc_auc_score

from offmanifold import calibration
from offmanifold.calibration import p_of_alarms
from offmanifold.detectors import AE
from offmanifold.measures import detection
from offmanifold.measures.detection import aupr, auroc, auroc_difference, fpr_at_tpr, proportion
from offmanifold.measures.estimates import Estimate, rank_correlation


def test_p_values_by_counting() -> None:
    held = np.array([0.3, -1.0, 2.0, 0.3])
    found = calibration.p_values(held, np.array([-2.0, -1.0, 0.3, 0.31, 5.0]))
    np.testing.assert_allclose(found, np.array([1, 2, 4, 4, 5]) / 5)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 1 / 3])
@pytest.mark.parametrize("rows", [1, 19, 20, 99, 200])
def test_the_threshold_is_the_p_value_rule(rate: float, rows: int) -> None:
    rng = np.random.default_rng(rows)
    held = rng.normal(size=rows).round(1)  # with ties
    scores = np.r_[rng.normal(size=300).round(1), -50]
    below = scores < calibration.threshold(held, rate)
    np.testing.assert_array_equal(below, calibration.p_values(held, scores) <= rate + 1e-12)


def test_a_rate_of_nearly_one_has_a_threshold() -> None:
    assert calibration.threshold(np.arange(4.0), 1 - 1e-12) == 3.0


def test_p_values_hold_their_rate_over_repeated_draws() -> None:
    """P(p ≤ α) is ⌊α(n + 1)⌋/(n + 1) exactly; the count over independent draws is binomial."""
    rng = np.random.default_rng(0)
    n, draws = 39, 4000
    p = np.array([calibration.p_values(rng.normal(size=n), rng.normal(size=1))[0] for _ in range(draws)])
    for rate in (0.05, 0.1, 0.3):
        exact = math.floor(rate * (n + 1) + 1e-9) / (n + 1)
        low, high = binom.interval(0.9999, draws, exact)
        assert low <= (p <= rate + 1e-12).sum() <= high


def test_a_fitted_detector_keeps_its_false_alarm_rate() -> None:
    """Over repeated fits, each judging one fresh normal row set: the mean rate is at most the asked one."""
    rng = np.random.default_rng(1)
    alarms = []
    for seed in range(25):
        detector = AE(steps=30, hidden=(16,), false_alarm_rate=0.1, random_state=seed, verbose=False)
        detector.fit(rng.normal(size=(150, 3)))
        alarms.append((detector.predict(rng.normal(size=(200, 3))) == -1).mean())
    # 30 calibration rows: the rate of one fit is Beta(3, 28), standard deviation .05; of the mean of 25, .0105.
    assert abs(np.mean(alarms) - 3 / 31) < 4 * 0.0105


def test_benjamini_hochberg_by_the_book_and_its_rate() -> None:
    p = np.array([0.01, 0.02, 0.03, 0.5, 0.04])
    assert calibration.false_discoveries(p, 0.05).tolist() == [True, True, True, False, True]
    assert not calibration.false_discoveries(np.array([0.5, 0.9]), 0.1).any()
    for wrong, told in (([-0.1, 0.5], "values from -0.1 to 0.5"), ([5.0], "5"), ([np.nan], "nan"), ([[0.1]], "(1, 1)")):
        with pytest.raises(ValueError, match=f"p must be p-values.*{re.escape(told)}"):
            calibration.false_discoveries(wrong, 0.1)
    # p-values of 19 calibration rows lie on a lattice with 0.05 on it: equality must not depend on rounding.
    for count in range(1, 60):
        assert calibration.false_discoveries(np.full(count, 1 / 20), 0.05).all()
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(300):
        held = rng.normal(size=500)
        scores = np.r_[rng.normal(size=180), rng.normal(size=20) - 6]
        called = calibration.false_discoveries(calibration.p_values(held, scores), 0.2)
        shares.append(called[:180].sum() / max(1, called.sum()))
    assert np.mean(shares) <= 0.2 * 0.9 + 4 * np.std(shares) / math.sqrt(300)
    assert np.mean(shares) > 0.1  # the procedure has power: it uses most of what it is allowed


def test_split_sizes() -> None:
    assert calibration.split_sizes(1000, 0.05, None) == (200, 100)
    assert calibration.split_sizes(60, 0.05, None) == (19, 6)  # 12 could not promise 5 %
    assert calibration.split_sizes(20, 0.05, None) == (4, 2)  # nor can half of 20
    assert calibration.split_sizes(10**6, 0.05, None) == (5000, 1000)
    assert calibration.split_sizes(100, 0.05, 0.5) == (50, 10)
    assert calibration.split_sizes(100, 0.05, 0.89) == (89, 10)
    with pytest.raises(ValueError, match="calibration_fraction=0.9 keeps 90 of 100 rows aside; with the 10 that"):
        calibration.split_sizes(100, 0.05, 0.9)
    assert calibration.split_sizes(10**6, 1e-4, None) == (9999, 1000)  # what so small a rate takes
    assert calibration.split_sizes(38, 0.05, None) == (19, 3)


def test_rates_that_no_float_is() -> None:
    for rate in (0.29, 0.57, 0.58):
        scores = np.arange(99.0)
        assert (scores < calibration.threshold(scores, rate)).sum() == round(100 * rate) - 1


def test_the_range_of_rates_of_few_rows() -> None:
    """By the smallest of 19 scores, uniform rates have P(> r) = (1 − r)¹⁹."""
    expected = 1 - 0.975 ** (1 / 19), 1 - 0.025 ** (1 / 19)
    assert calibration.rate_range(19, 0.05) == pytest.approx(expected)


@pytest.mark.parametrize(("m", "least"), [(5, 0.93), (20, 0.93), (200, 0.93)])
def test_the_interval_of_the_false_positive_rate_holds(m: int, least: float) -> None:
    rng, truth = np.random.default_rng(m), norm.sf(3 + norm.ppf(0.05))
    found = [fpr_at_tpr(-rng.normal(0, 1, 1000), -rng.normal(3, 1, m)) for _ in range(300)]
    assert np.mean([estimate.low <= truth <= estimate.high for estimate in found]) > least
    assert calibration.rows_needed(0.05) == 19
    assert calibration.smallest_rate(19) == 0.05


def test_how_far_a_single_models_rate_may_lie_off() -> None:
    rng, n = np.random.default_rng(0), 100
    low, high = calibration.rate_range(n, 0.05)
    held = rng.uniform(size=(20_000, n))
    rates = np.sort(held, 1)[:, 4]  # five of 101: of uniform scores the threshold is the rate
    assert np.quantile(rates, [0.025, 0.975]) == pytest.approx([low, high], rel=0.05)
    assert calibration.rate_range(10, 0.05) == (0.0, 0.0)


def test_how_many_must_be_extreme_before_any_is_called() -> None:
    for rows, known, rate in ((1000, 99, 0.1), (20_050, 200, 0.1), (50, 199, 0.05)):
        needed = calibration.discoverable(rows, known, rate)
        for extreme, called in ((needed - 1, False), (needed, True)):
            p = np.r_[np.full(extreme, 1 / (known + 1)), np.full(rows - extreme, 0.9)]
            assert calibration.false_discoveries(p, rate).any() == called


def test_a_score_that_is_no_number_is_no_normal_one() -> None:
    with pytest.raises(ValueError, match="scores holds 1 NaN scores"):
        calibration.p_values(np.arange(99.0), [1.0, np.nan])
    with pytest.raises(ValueError, match="calibration holds 1 NaN scores"):
        calibration.p_values([np.nan, 1.0], [1.0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: auroc([1.0], [0.0], level=95), "level must be .* below 1; got 95"),
        (
            lambda: auroc_difference(([1.0], [0.0, 1.0]), ([1.0], [0.0])),
            "others must be of the same outliers",
        ),
        (lambda: fpr_at_tpr([1.0], [0.0], tpr=95), "tpr must be .* at most 1; got 95"),
        (lambda: fpr_at_tpr([1.0], [0.0], tpr=0), "tpr must be .* above 0"),
        (lambda: aupr([1.0], [0.0], draws=0), "draws must be an integer of at least 1; got 0"),
    ],
)
def test_measures_name_what_is_wrong(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_intervals_at_the_edge_have_a_width() -> None:
    found = fpr_at_tpr(np.full(10, 5.0), np.full(100, 1.0))
    assert (found.value, found.low) == (0.0, 0.0) and found.high == pytest.approx(proportion(0, 10).high)
    assert fpr_at_tpr(np.full(10, 5.0), np.full(71, 1.0)).high == 1  # so few bound no threshold
    assert aupr([1.0, 2.0], [-np.inf, 0.0]).value == 1.0
    for n, lowest in ((4, -0.9), (10, 0.9)):
        same = rank_correlation(np.arange(n), np.arange(n))
        assert (same.value, same.high) == (pytest.approx(1.0), 1.0) and lowest < same.low < 0.99
        turned = rank_correlation(np.arange(n), -np.arange(n))
        assert turned.low == -1.0 and turned.high == pytest.approx(-same.low)


def test_auroc_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    normal, odd = rng.normal(1, 1, 60).round(1), rng.normal(0, 1, 40).round(1)
    found = auroc(normal, odd)
    labels = np.r_[np.zeros(60), np.ones(40)]
    assert found.value == pytest.approx(roc_auc_score(labels, -np.r_[normal, odd]))
    # DeLong's variance by its definition: placements, one row at a time.
    placed = (odd[:, None] < normal).astype(float) + 0.5 * (odd[:, None] == normal)
    variance = placed.mean(1).var(ddof=1) / 40 + placed.mean(0).var(ddof=1) / 60
    a = found.value
    spread = 1.959964 * math.sqrt(variance) / (a * (1 - a))
    delong = [1 / (1 + math.exp(-(math.log(a / (1 - a)) + s))) for s in (-spread, spread)]

    def off(theta: float) -> float:
        """How far A lies from θ in standard errors, of exponential scores with (n + m)/2 rows of each kind."""
        q1, q2, others = theta / (2 - theta), 2 * theta**2 / (1 + theta), 50 - 1
        return abs(a - theta) / math.sqrt(
            (theta * (1 - theta) + others * (q1 - theta**2) + others * (q2 - theta**2)) / 2400
        )

    # Each end is the farther one of the two intervals.
    for end, other, sign in ((found.low, delong[0], -1), (found.high, delong[1], 1)):
        assert sign * (end - other) >= -1e-9 and off(end) >= 1.959963
        assert end == pytest.approx(other, rel=1e-5) or off(end) == pytest.approx(1.959964, rel=1e-5)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (1000, 30), (1000, 5), (1000, 2), (5, 400)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_aurocs_interval_covers(n: int, m: int, shift: float) -> None:
    """With few outliers, too, and where hardly a row is out of place."""
    rng, true = np.random.default_rng(3), norm.cdf(shift / math.sqrt(2))
    draws = [auroc(rng.normal(shift, 1, n), rng.normal(0, 1, m)) for _ in range(400)]
    assert np.mean([d.low <= true <= d.high for d in draws]) >= 0.93


def test_all_scores_alike_say_nothing() -> None:
    found = auroc(np.ones(20), np.ones(10))
    assert found.value == 0.5 and found.low < 0.35 and found.high > 0.65


@pytest.mark.parametrize(("m", "shift"), [(5, 2.0), (10, 3.0)])
def test_the_interval_of_a_difference_covers_with_few_outliers(m: int, shift: float) -> None:
    rng = np.random.default_rng(4)
    true, covered = norm.cdf(shift / 2**0.5) - norm.cdf(shift / (2 * 1.49) ** 0.5), []
    for _ in range(400):
        rows = rng.normal(shift, 1, 500), rng.normal(0, 1, m)
        noisy = tuple(part + 0.7 * rng.normal(size=len(part)) for part in rows)
        found = auroc_difference(rows, (noisy[0], noisy[1]))
        covered.append(found.low <= true <= found.high)
    assert np.mean(covered) >= 0.93


def test_the_difference_of_two_aurocs_of_the_same_rows() -> None:
    rng = np.random.default_rng(5)

    def draw() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        normal, odd = rng.normal(1, 1, 60), rng.normal(0, 1, 40)
        noisy = tuple(rows + 0.7 * rng.normal(size=len(rows)) for rows in (normal, odd))
        return (normal, odd), (noisy[0], noisy[1])

    (sharp, noisy), true = draw(), norm.cdf(1 / 2**0.5) - norm.cdf(1 / (2 * 1.49) ** 0.5)
    found = auroc_difference(sharp, noisy)
    assert found.value == pytest.approx(auroc(*sharp).value - auroc(*noisy).value)
    assert auroc_difference(sharp, sharp) == Estimate(0.0, 0.0, 0.0, 0.95)
    # Both separate these perfectly, and rank them differently.
    apart = auroc_difference(([3.0, 4, 5], [0.0, 1]), ([5.0, 4, 3], [0.0, 1]))
    assert apart.value == 0 and apart.low < -0.5 and apart.high > 0.5
    found = [auroc_difference(*draw()) for _ in range(600)]
    assert 0.92 <= np.mean([one.low <= true <= one.high for one in found]) <= 0.98
    # Shared rows make it narrower than two intervals together would be.
    assert found[0].high - found[0].low < auroc(*sharp).high - auroc(*sharp).low


def test_perfect_separation_still_has_an_interval() -> None:
    perfect = auroc([2.0, 3.0, 4.0], [0.0, 1.0])
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(math.sqrt(0.025))
    assert auroc([0.0], [1.0]).value == 0.0


def test_aupr_and_fpr() -> None:
    rng = np.random.default_rng(0)
    normal, odd = rng.normal(1, 1, 500), rng.normal(-1, 1, 300)
    labels = np.r_[np.zeros(500), np.ones(300)]
    found = aupr(normal, odd)
    assert found.value == pytest.approx(average_precision_score(labels, -np.r_[normal, odd]))
    rate = fpr_at_tpr(normal, odd)
    threshold = min(t for t in odd if (odd <= t).mean() >= 0.95)
    assert rate.value == (normal <= threshold).mean()
    for estimate in (found, rate):
        assert estimate.low < estimate.value < estimate.high
    assert fpr_at_tpr([5.0] * 10, [1.0] * 10).value == 0
    assert fpr_at_tpr([1.0, 2, 2, 3], [0.0, 1, 2, 2], tpr=0.5).value == 0.25
    assert fpr_at_tpr(np.arange(10.0) + 0.5, np.arange(10.0), tpr=0.9).value == 0.8
    assert fpr_at_tpr(np.arange(5.0), np.arange(5.0), tpr=1e-12).value == 0.2
    handful = aupr(normal, odd[:4])
    assert aupr(normal[:4], odd).to_json() | {"value": 0} == {"value": 0, "low": 0.0, "high": 1.0, "level": 0.95}
    assert (handful.low, handful.high) == (0, 1) and 0 < aupr(normal, odd[:5]).low < aupr(normal, odd[:5]).high < 1
    wide, narrow = aupr(normal, odd), aupr(normal, odd, level=0.5)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert proportion(0, 10).high == pytest.approx(0.3085, abs=1e-4)


def test_the_probability_of_so_many_alarms() -> None:
    """Of exchangeable rows, by simulation: with few calibration rows it is far from the binomial one."""
    rng = np.random.default_rng(0)
    known, fresh = rng.normal(size=(20_000, 39)), rng.normal(size=(20_000, 50))
    threshold = np.sort(known, 1)[:, 1:2]  # p-values of at most 2/40
    counts = (fresh <= threshold).sum(1)
    for count in (1, 5, 10):
        assert p_of_alarms(count, 50, 39, 0.05) == pytest.approx((counts >= count).mean(), abs=0.012)
    assert p_of_alarms(0, 50, 39, 0.05) == 1 and p_of_alarms(3, 50, 5, 0.05) == 1


def test_estimates_are_shown_with_digits_that_say_something() -> None:
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]" and str(Estimate(0, 0, 0)) == "0.000 [0.000, 0.000]"
    assert str(Estimate(-0.00012, -0.0004, 0.00002)) == "-0.000120 [-0.000400, 0.000020]"
    assert str(Estimate(0.0, -np.inf, np.inf)) == "0.000 [-inf, inf]" and str(Estimate(-0.0004, -1, 1))[:5] == "0.000"


def test_measures_refuse_what_is_no_list_of_scores() -> None:
    with pytest.raises(ValueError, match="outliers must be a non-empty"):
        auroc([1.0], [])
    with pytest.raises(ValueError, match="normal holds NaN"):
        auroc([float("nan")], [1.0])


def test_newcombes_ends_are_where_the_value_is_z_deviations_off() -> None:
    """By Hanley & McNeil's variance at the end itself, both samples counted as their mean size (Newcombe 2006)."""
    value, n, m, z = 0.9, 1000, 5, norm.ppf(0.975)
    for end in detection._newcombe(value, n, m, z):
        first, second = end / (2 - end), 2 * end**2 / (1 + end)
        size = (n + m) / 2 - 1
        variance = (end * (1 - end) + size * (first - end**2) + size * (second - end**2)) / (n * m)
        assert abs(value - end) / math.sqrt(variance) == pytest.approx(z)


def test_a_difference_without_a_variance_has_zous_interval_of_independent_ones() -> None:
    one, two = ([3.0, 4, 5, 6], [0.0, 1, 2]), ([3.0, 1.5, 5, 6], [0.0, 2, 1])
    first, second, found = auroc(*one), auroc(*two), auroc_difference(one, two)
    assert first.value == 1  # of no variance by DeLong
    below = math.hypot(first.value - first.low, second.high - second.value)
    assert found.low == pytest.approx(first.value - second.value - below)
