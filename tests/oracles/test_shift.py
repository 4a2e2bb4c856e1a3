"""Shifts of means: exact where nothing moved, found where something did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest, skew, ttest_ind

from offmanifold.measures.shift import Moments, compared_parts, shift

RNG = np.random.default_rng(0)


def correlated(n: int, d: int) -> np.ndarray:
    mixing = np.random.default_rng(d).normal(size=(d, d)) * np.geomspace(1, 0.05, d)
    return RNG.normal(size=(n, d)) @ mixing.T


def test_moments_are_those_of_the_cells_seen() -> None:
    rows = RNG.normal(3, 2, size=(2500, 4)).astype(np.float32)
    rows[RNG.uniform(size=rows.shape) < 0.2] = np.nan
    rows[:, 3] = np.nan
    found = Moments.of(rows)
    np.testing.assert_allclose(found.mean[:3], np.nanmean(rows[:, :3].astype(float), 0), rtol=1e-12)
    np.testing.assert_allclose(found.spread[:3], np.nanstd(rows[:, :3].astype(float), 0), rtol=1e-9)
    np.testing.assert_allclose(found.skewness[:3], skew(rows[:, :3].astype(float), nan_policy="omit"), atol=1e-9)
    np.testing.assert_array_equal(found.count, (~np.isnan(rows)).sum(0))


def test_of_one_column_it_is_the_t_test() -> None:
    a, b = RNG.normal(size=(4000, 1)), RNG.normal(0.05, 1, size=(3000, 1))
    assert shift(Moments.of(a), b).p_value == pytest.approx(ttest_ind(a, b).pvalue[0], rel=0.02)


def test_of_few_rows_the_spread_is_estimated_too() -> None:
    """Of N normal rows in all E z² is N/(N − 4) times what it would be were the spread known."""
    a, b = np.array([[0.0], [1.0], [3.0], [4.0]]), np.array([[2.0], [3.0], [5.0], [6.0]])
    p_value = shift(Moments(np.array([2.0]), np.array([2.5**0.5]), np.array([4.0])), b).p_value
    assert p_value == pytest.approx(chi2.sf(2**2 / 2.5 / (1 / 4 + 1 / 4) * (8 - 4) / 8, 1))
    assert shift(Moments.of(a), b).p_value == pytest.approx(p_value)  # symmetric: without skewness


def test_one_in_a_hundred_moves_by_chance_over_all_parts() -> None:
    known = Moments(np.zeros(10), np.ones(10), np.full(10, 1e9))
    rows = RNG.normal(size=(100_000, 10))
    rows = (rows - rows.mean(0)) / rows.std(0)
    rows[:, 3] += 3.2 / len(rows) ** 0.5  # beyond 2.6, that of one part, and short of 3.3, that of ten
    assert not len(shift(known, rows).moved)
    rows[:, 5] -= 3.4 / len(rows) ** 0.5
    assert shift(known, rows).moved.tolist() == [5]


@pytest.mark.parametrize("dimensions", [1, 5, 60, 400])
def test_p_values_are_uniform_where_nothing_moved(dimensions: int) -> None:
    """For many more columns than rows as well, and for correlated ones."""
    p = [
        shift(Moments.of(correlated(300, dimensions)), correlated(150, dimensions)).p_value
        for _ in range(40 if dimensions == 400 else 200)
    ]
    assert kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) < 0.05) < 0.13


@pytest.mark.parametrize("together", [False, True], ids=["each-cell", "rows-at-once"])
def test_p_values_are_uniform_where_cells_are_missing(together: bool) -> None:
    """Of columns that all lean on one, a half of whose cells miss, one by one or in the same rows."""

    def rows(n: int) -> np.ndarray:
        found = 0.85 * RNG.normal(size=(n, 1)) + 0.5 * RNG.normal(size=(n, 12))
        return np.where(RNG.uniform(size=(n, 1 if together else 12)) < 0.5, np.nan, found)

    p = np.array([shift(Moments.of(rows(600)), rows(200)).p_value for _ in range(400)])
    assert (p < 0.05).mean() < 0.09 and (p < 0.001).mean() < 0.02


def test_p_values_are_uniform_for_far_more_columns_than_rows() -> None:
    p = [shift(Moments.of(RNG.normal(size=(300, 600))), RNG.normal(size=(20, 600))).p_value for _ in range(150)]
    assert kstest(p, "uniform").pvalue > 0.01
    # Two rows say nothing of how parts hang together: their p-value is that of one part.
    assert shift(Moments.of(RNG.normal(size=(300, 9))), np.full((2, 9), 1.0)).p_value > 0.05


def _levels(n: int) -> np.ndarray:
    share = 1 / np.arange(1, 81) ** 1.2
    return (RNG.choice(80, n, p=share / share.sum())[:, None] == np.arange(80)).astype(float)


@pytest.mark.parametrize(
    ("rows", "known", "new"),
    [
        (_levels, 10_000, 40),
        (lambda n: (RNG.uniform(size=(n, 40)) < 0.002).astype(float), 10_000, 40),
        (lambda n: np.exp(RNG.normal(size=(n, 10))), 10_000, 40),
        (lambda n: np.exp(1.5 * RNG.normal(size=(n, 10))), 10_000, 40),
        (lambda n: np.exp(RNG.normal(size=(n, 10))), 300, 5000),
    ],
    ids=["levels", "rare", "long-tails", "longer-tails", "few-known"],
)
def test_rare_categories_and_long_tails_of_few_rows_have_not_moved(rows: Any, known: int, new: int) -> None:
    """Where a normal law of the means calls up to half of such rows moved."""
    found = [shift(Moments.of(rows(known)), rows(new)) for _ in range(150)]
    assert np.mean([one.p_value < 0.001 for one in found]) <= 0.02
    assert np.mean([len(one.moved) > 0 for one in found]) <= 0.05


def test_a_category_that_has_become_frequent_has_moved() -> None:
    rows = Moments.of(_levels(10_000))
    for count in (60, 400):
        new = _levels(count)
        new[: count // 4] = np.eye(80)[50]
        found = shift(rows, new)
        assert found.moved[0] == 50
    assert found.p_value < 1e-6


def test_the_size_is_in_standard_deviations_and_its_interval_holds() -> None:
    truth, inside, sizes = 0.5 / 6**0.5, 0, []
    for _ in range(100):
        rows = 7 * RNG.normal(size=(400, 6))
        rows[:, 4] += 3.5
        found = shift(Moments.of(7 * RNG.normal(size=(1000, 6))), rows)
        inside += found.size.low <= truth <= found.size.high
        sizes.append(found.size.value)
        assert found.moved[0] == 4
    assert inside >= 88 and np.mean(sizes) == pytest.approx(truth, rel=0.05)


def test_the_size_is_the_same_however_many_rows_tell_it() -> None:
    """Tails of normal laws end at z = 37, which a standard deviation of 20 000 rows exceeds."""
    for rows in (2_000, 20_000, 200_000):
        found = shift(Moments.of(RNG.normal(size=(rows, 1))), RNG.normal(1, 1, size=(rows, 1)))
        assert found.size.low <= found.size.value <= found.size.high
        assert found.size.value == pytest.approx(1, abs=0.1)


def test_gaps_are_in_the_standard_deviations_of_what_is_known() -> None:
    known = Moments(np.zeros(3), np.array([1.0, 1.0, 0.0]), np.full(3, 2000.0))
    new = RNG.normal(3, [6.0, 1.0, 1.0], size=(2000, 3))
    np.testing.assert_allclose(shift(known, new).gaps[:2], new.mean(0)[:2], rtol=1e-12)
    assert abs(shift(known, new).gaps[2]) == pytest.approx(3 / 0.5**0.5, rel=0.1)  # of a constant one: of all rows


def test_columns_that_are_constant_or_empty() -> None:
    known = np.tile([1.0, 2.0, np.nan, 0.0], (50, 1))
    known[:, 3] = RNG.normal(size=50)
    same = known[:30].copy()
    assert shift(Moments.of(known[:, :3]), same[:, :3]).p_value == 1
    assert shift(Moments.of(known), same).size.low == 0
    same[:, 1] = 2.5
    found = shift(Moments.of(known), same)
    assert found.p_value < 1e-10 and found.moved.tolist() == [1]


def test_images_are_told_by_the_brightness_of_patches() -> None:
    images = torch.zeros(2, 3, 8, 12)
    images[1, 2, 2:4, 9:] = 1
    parts = compared_parts(images)
    assert parts.shape == (2, 48) and parts.sum() == 1
    assert parts[1].reshape(3, 4, 4)[2, 1, 3] == 1
